"""Every node, widget, choice and output has its words in each language, and no word is left of what is gone."""

import json
import re
from typing import Any

import pytest

from i2v_tensorrt.cli.node_info import PREFIX, inputs_of, stored
from i2v_tensorrt.tests.helpers.locales import LANGUAGES, LOCALES, node_defs, settings, slots, texts

INFO = {name: info for name, info in stored().items() if name.startswith(PREFIX)}
CATEGORY = "I2V TensorRT"
MARKUP = re.compile(r"[@{}|$]")
"""What the page's translator takes for its own syntax: links, places to fill in, plurals."""
CHINESE = re.compile(r"[\u4e00-\u9fff]")

each_language = pytest.mark.parametrize("language", LANGUAGES)


def main(language: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / "main.json").read_text("utf-8"))


def on_the_page(pattern: str) -> list[str]:
    """What the page's script says in such places."""
    return re.findall(pattern, (LOCALES.parent / "web" / "i2v_tensorrt.js").read_text("utf-8"), re.MULTILINE)


def own_types() -> set[str]:
    kinds = {kind for info in INFO.values() for kind, _ in inputs_of(info).values()}
    return {kind for kind in kinds | {kind for info in INFO.values() for kind in info["output"]} if kind[:4] == "I2V_"}


def test_there_are_two_languages() -> None:
    assert {"en", "zh"} <= set(LANGUAGES)


@each_language
class TestLanguage:
    def test_nothing_is_missing_and_nothing_is_stale(self, language: str) -> None:
        wanted = {(name, *path) for name, info in INFO.items() for path in slots(name, info)}
        found = set(texts(node_defs(language)))
        assert len(wanted) > 100
        assert sorted(wanted - found) == []
        assert sorted(found - wanted) == []

    def test_no_text_is_empty_or_means_something_else_to_the_page(self, language: str) -> None:
        words = {**texts(node_defs(language)), **texts(main(language)), **texts(settings(language))}
        assert [path for path, text in words.items() if not text.strip() or MARKUP.search(text)] == []

    def test_sentences_are_sentences(self, language: str) -> None:
        words = texts(node_defs(language))
        assert [
            path for path, text in words.items() if path[-1] in ("tooltip", "description") and text[-1] not in ".。"
        ] == []

    def test_the_category_and_our_types_have_names(self, language: str) -> None:
        assert own_types() == {"I2V_MODEL", "I2V_CONDITIONING"}
        assert set(main(language)) == {"nodeCategories", "dataTypes", "settingsCategories"}
        assert set(main(language)["nodeCategories"]) == {CATEGORY}
        assert set(main(language)["dataTypes"]) == own_types()

    def test_every_setting_has_its_words(self, language: str) -> None:
        """By its id, with lines for points, which the page's translator takes for steps down a path."""
        ids = on_the_page(r'^ +id: "(I2VTensorRT\.\w+)"')
        assert ids
        assert {key: set(words) for key, words in settings(language).items()} == {
            name.replace(".", "_"): {"name", "tooltip"} for name in ids
        }

    def test_what_settings_stand_under_has_its_words(self, language: str) -> None:
        (category, part, _), *others = [json.loads(f"[{each}]") for each in on_the_page(r"^ +category: \[(.+)\]")]
        assert others == []
        assert set(main(language)["settingsCategories"]) == {category, part}

    def test_names_of_nodes_differ(self, language: str) -> None:
        names = [node["display_name"] for node in node_defs(language).values()]
        assert len(set(names)) == len(names)

    def test_the_choices_of_one_widget_differ(self, language: str) -> None:
        choices = [
            entry.get("options", {}) for node in node_defs(language).values() for entry in node["inputs"].values()
        ]
        assert [labels for labels in choices if len(set(labels.values())) != len(labels)] == []


def test_the_setting_on_the_page_is_the_one_that_is_read() -> None:
    source = (LOCALES.parent / "nodes" / "host" / "idle.py").read_text("utf-8")
    assert re.findall(r'^SETTING = "(.+)"$', source, re.MULTILINE) == on_the_page(r'^ +id: "(I2VTensorRT\.\w+)"')


def test_the_page_says_in_english_what_the_locale_says() -> None:
    (name,) = on_the_page(r'^      name: "(.+)",$')
    (words,) = settings("en").values()
    tooltip = "".join(json.loads(f'"{each}"') for each in on_the_page(r'^        "(.+)"(?: \+|,)$'))
    assert (name, tooltip) == (words["name"], words["tooltip"])


def test_the_chinese_is_chinese() -> None:
    known = {**texts(node_defs("zh")), **texts(settings("zh"))}
    words = {path: text for path, text in known.items() if path[-1] in ("tooltip", "description")}
    assert [path for path, text in words.items() if not CHINESE.search(text)] == []


def test_one_english_sentence_has_one_chinese_one() -> None:
    """What reads the same on two nodes in English reads the same in Chinese."""
    english, chinese = texts(node_defs("en")), texts(node_defs("zh"))
    pairs: dict[str, set[str]] = {}
    for path, text in english.items():
        if path[-1] == "tooltip":
            pairs.setdefault(text, set()).add(chinese[path])
    assert {text: found for text, found in pairs.items() if len(found) > 1} == {}

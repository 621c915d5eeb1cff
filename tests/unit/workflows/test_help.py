"""Every node has a help page in each language, which explains every input and quotes only what the pack says."""

import re
from pathlib import Path

import pytest

from i2v_tensorrt.cli.node_info import OFFERED, PREFIX, inputs_of, stored
from i2v_tensorrt.tests.helpers.locales import LANGUAGES, LOCALES, node_defs
from i2v_tensorrt.tests.repository.test_readme import says, sentences

WEB = LOCALES.parent / "web"
DOCS = WEB / "docs"
INFO = {name: info for name, info in stored().items() if name.startswith(PREFIX)}
SOURCES = [path.read_text("utf-8") for path in (LOCALES.parent / "nodes").glob("*.py")]
PAGES = [(name, language) for name in sorted(INFO) for language in LANGUAGES]

each_page = pytest.mark.parametrize(("name", "language"), PAGES)


def page(name: str, language: str) -> str:
    return (DOCS / name / f"{language}.md").read_text("utf-8")


def sections(markdown: str) -> list[str]:
    """The page's head, then its inputs, its outputs, and what goes wrong."""
    return re.split(r"^## .+$", markdown, flags=re.MULTILINE)


def quotes(text: str) -> list[str]:
    """What is set as code."""
    return re.findall(r"`([^`]+)`", text)


def refuses(name: str) -> bool:
    """Whether a node's file lets errors of the pack out."""
    (source,) = (text for text in SOURCES if f'node_id="{name}"' in text)
    return "ui.sentences()" in source


def test_nearly_every_node_refuses_something() -> None:
    assert len([name for name in INFO if refuses(name)]) >= 7


def test_there_is_a_page_for_every_node_and_language_and_none_else() -> None:
    found = sorted(path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*.md"))
    assert found == sorted(f"{name}/{language}.md" for name, language in PAGES)


@each_page
class TestPage:
    def test_it_is_headed_by_the_name_that_the_page_shows(self, name: str, language: str) -> None:
        assert page(name, language).startswith(f"# {node_defs(language)[name]['display_name']}\n")

    def test_every_input_has_its_line(self, name: str, language: str) -> None:
        lines = [line for line in sections(page(name, language))[1].splitlines() if line.startswith("- ")]
        heads = [quote for line in lines for quote in quotes(re.split(r"[:：]", line)[0])]
        assert sorted(heads) == sorted(inputs_of(INFO[name]))

    def test_every_choice_is_explained(self, name: str, language: str) -> None:
        told = set(quotes(sections(page(name, language))[1]))
        for key, (kind, settings) in inputs_of(INFO[name]).items():
            if kind == "COMBO" and (name, key) not in OFFERED:
                assert set(settings["options"]) - told == set(), key

    def test_every_output_is_explained(self, name: str, language: str) -> None:
        assert set(INFO[name]["output_name"]) <= set(quotes(sections(page(name, language))[2]))

    def test_names_are_those_on_the_node(self, name: str, language: str) -> None:
        """Where a language has names of its own, they stand beside those that programs write."""
        text = page(name, language)
        for key, entry in node_defs(language)[name]["inputs"].items():
            assert f"`{key}`" in text
            assert entry["name"] == key or f"**{entry['name']}** `{key}`" in text

    def test_it_says_what_goes_wrong_in_our_own_words(self, name: str, language: str) -> None:
        if not refuses(name):
            return
        lines = [line for line in sections(page(name, language))[3].splitlines() if line.startswith("- `")]
        heads = [quote for line in lines for quote in quotes(re.split(r"[:：](?= |[^`]*$)", line)[0])]
        known = sentences()
        assert heads
        assert [quote for quote in heads if not any(says(sentence, quote) for sentence in known)] == []

    def test_its_pictures_are_there(self, name: str, language: str) -> None:
        pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page(name, language))
        assert [picture for picture in pictures if not (DOCS / picture).is_file()] == []


@pytest.mark.parametrize("name", sorted(INFO))
def test_the_languages_say_as_much(name: str) -> None:
    pages = [page(name, language) for language in LANGUAGES]
    assert len({len(sections(text)) for text in pages}) == 1
    assert len({text.count("\n- ") for text in pages}) == 1


def test_a_colour_and_a_width_of_its_own_are_those_of_a_node() -> None:
    script = (WEB / "i2v_tensorrt.js").read_text("utf-8")
    faces = re.findall(r"^  (I2VTRT_\w+): \{ title: [A-Z]+, width: \d+(?:, height: \d+)? \},$", script, re.MULTILINE)
    assert len(faces) >= 7
    assert set(faces) <= set(INFO)


def test_what_is_served_is_small() -> None:
    assert sum(path.stat().st_size for path in Path(WEB).rglob("*.*")) < 500_000

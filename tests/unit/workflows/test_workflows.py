"""The shipped workflows, without a host: both formats say the same, and only what the nodes understand."""

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.node_info import OFFERED, PREFIX, contract, inputs_of, stored
from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.tests.helpers.graph import NOTES, Graph, Prompt, faults, to_prompt

ROOT = Path(__file__).resolve().parents[3]
WORKFLOWS = ROOT / "workflows"
NAMES = sorted(path.stem for path in (WORKFLOWS / "api").glob("*.json"))
INFO = stored()
# A file of an engine, or the digest that its folder is named by.
ENGINE_FILE = re.compile(r"i2v_engines|\.(engine|plan|trt|onnx|pt2|so)\b|\b[0-9a-f]{32,}\b", re.IGNORECASE)
NETWORK_FILE = re.compile(re.escape(OFFERED["I2VTRT_OnnxPicture", "file"][0]))
"""A file of the user's own that ends as some engines do."""
TITLE_HEIGHT = 30

each_workflow = pytest.mark.parametrize("name", NAMES)


def graph(name: str) -> Graph:
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def prompt(name: str) -> Prompt:
    return json.loads((WORKFLOWS / "api" / f"{name}.json").read_text("utf-8"))


def texts(value: Any) -> list[str]:
    """Every text in a JSON value, keys too."""
    if isinstance(value, dict):
        return [text for pair in value.items() for part in pair for text in texts(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts(part)]
    return [value] if isinstance(value, str) else []


def test_there_are_workflows() -> None:
    assert {workflow_names.QUICK_START, workflow_names.MIXED} <= set(NAMES)
    assert sorted(path.stem for path in WORKFLOWS.glob("*.json")) == NAMES


@each_workflow
class TestWorkflow:
    def test_a_host_would_take_it(self, name: str) -> None:
        assert faults(prompt(name), INFO) == []

    def test_both_formats_say_the_same(self, name: str) -> None:
        assert to_prompt(graph(name), INFO) == prompt(name)

    def test_it_names_no_file_of_an_engine(self, name: str) -> None:
        said = texts(graph(name)) + texts(prompt(name))
        named = [text for text in said if ENGINE_FILE.search(NETWORK_FILE.sub("", text))]
        assert named == []

    def test_both_ends_of_every_link_know_it(self, name: str) -> None:
        whole = graph(name)
        nodes = {node["id"]: node for node in whole["nodes"]}
        starts = [
            (link, node["id"], slot)
            for node in whole["nodes"]
            for slot, output in enumerate(node["outputs"])
            for link in output["links"] or []
        ]
        assert sorted(starts) == sorted((link[0], link[1], link[2]) for link in whole["links"])
        for link, _, _, target, slot, kind in whole["links"]:
            assert nodes[target]["inputs"][slot]["link"] == link
            assert nodes[target]["inputs"][slot]["type"] == kind

    def test_every_node_says_which_pack_brings_it(self, name: str) -> None:
        version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
        assert version is not None
        for node in (node for node in graph(name)["nodes"] if node["type"] not in NOTES):
            pack, ver = node["properties"]["cnr_id"], node["properties"]["ver"]
            ours = node["type"].startswith(PREFIX)
            assert (pack, ver) == (("i2v-tensorrt", version[1]) if ours else ("comfy-core", "0.3.64"))

    def test_a_note_says_how_to_run_it(self, name: str) -> None:
        notes = [node["widgets_values"][0] for node in graph(name)["nodes"] if node["type"] in NOTES]
        assert any(folder in note for note in notes for folder in ("models/i2v", "models/checkpoints"))

    def test_no_node_covers_another(self, name: str) -> None:
        for one, other in combinations(graph(name)["nodes"], 2):
            assert any(
                one["pos"][axis] + one["size"][axis] + title <= other["pos"][axis]
                or other["pos"][axis] + other["size"][axis] + title <= one["pos"][axis]
                for axis, title in ((0, 0), (1, TITLE_HEIGHT))
            ), (one["type"], other["type"])

    def test_what_is_set_is_shown(self, name: str) -> None:
        """Advanced inputs are folded away on a fresh node."""
        for node in graph(name)["nodes"]:
            known = inputs_of(INFO.get(node["type"], {"input_order": {}}))
            given = prompt(name).get(str(node["id"]), {}).get("inputs", {})
            advanced = {key: settings["default"] for key, (_, settings) in known.items() if settings.get("advanced")}
            if any(given.get(key, default) != default for key, default in advanced.items()):
                assert node["showAdvanced"], node["type"]

    def test_values_by_name_are_those_by_place(self, name: str) -> None:
        """The page stores both and may read either."""
        for node in graph(name)["nodes"]:
            assert list(node.get("widgets_values_named", {}).values()) in ([], node["widgets_values"])


class TestFaults:
    """The checks above do refuse."""

    @pytest.mark.parametrize(
        ("number", "change", "expected"),
        [
            ("4", {"width": 4096 * 8}, "4: width cannot be 32768"),
            ("4", {"width": 512.5}, "4: width cannot be 512.5"),
            ("4", {"widht": 512}, "4: no input widht"),
            ("5", {"conditioning": ["3", 0]}, "5: conditioning cannot be ['3', 0]"),
            ("5", {"conditioning": ["99", 0]}, "5: conditioning cannot be ['99', 0]"),
            ("7", {"format": "avi"}, "7: format cannot be 'avi'"),
            ("7", {"pingpong": "false"}, "7: pingpong cannot be 'false'"),
        ],
    )
    def test_an_input_that_a_host_would_refuse(self, number: str, change: dict[str, Any], expected: str) -> None:
        wrong = prompt(workflow_names.QUICK_START)
        wrong[number]["inputs"].update(change)
        assert faults(wrong, INFO) == [expected]

    def test_a_missing_input_and_an_unknown_node(self) -> None:
        wrong = prompt(workflow_names.QUICK_START)
        del wrong["5"]["inputs"]["seed"]
        wrong["6"]["class_type"] = "Nothing"
        assert faults(wrong, INFO) == ["5: seed is missing", "6: no node Nothing", "7: frames cannot be ['6', 0]"]

    @pytest.mark.parametrize("text", ["core.engine", "a/b.plan", "i2v_engines/x", "0123456789abcdef" * 4, "x.onnx"])
    def test_a_file_of_an_engine(self, text: str) -> None:
        assert ENGINE_FILE.search(text)


def test_what_is_stored_says_nothing_of_one_machine() -> None:
    assert {name: contract(name, info) for name, info in INFO.items()} == INFO

"""The subgraph blueprint: the quick start's graph in one node, with the inputs that people change on it."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.node_info import stored
from i2v_tensorrt.common.workflow_names import QUICK_START, api_workflow
from i2v_tensorrt.tests.helpers.graph import Prompt, faults, to_prompt

ROOT = Path(__file__).resolve().parents[3]
NAME = "Image to Video (I2V TensorRT)"
WHOLE = json.loads((ROOT / "subgraphs" / f"{NAME}.json").read_text("utf-8"))
(OUTSIDE,) = WHOLE["nodes"]
(INSIDE,) = WHOLE["definitions"]["subgraphs"]
ENTRANCE, EXIT = -10, -20
PICTURE = 1


def flat() -> Prompt:
    """What is inside as the API's prompt, with a picture in front, and values of widgets as they stand."""
    nodes = {node["id"]: node for node in copy.deepcopy(INSIDE["nodes"])}
    picture = {"id": PICTURE, "type": "LoadImage", "inputs": [], "widgets_values": ["lake.png", "image"], "title": ""}
    links = []
    for link in INSIDE["links"]:
        ends = [link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")]
        if link["origin_id"] == ENTRANCE and INSIDE["inputs"][link["origin_slot"]]["type"] == "IMAGE":
            ends[1:3] = [PICTURE, 0]
        links.append(ends)
    inner = {link[0] for link in links if link[1] != ENTRANCE}
    for node in nodes.values():
        for slot in node["inputs"]:
            slot["link"] = slot["link"] if slot["link"] in inner else None
    return to_prompt({"nodes": [picture, *nodes.values()], "links": links}, stored())


def inputs(prompt: Prompt) -> dict[str, Any]:
    return {number: (node["class_type"], node["inputs"]) for number, node in prompt.items() if number != "7"}


def test_it_is_the_quick_start_and_a_host_would_take_it() -> None:
    quick = json.loads(api_workflow(QUICK_START).read_text("utf-8"))
    assert faults(flat(), stored()) == []
    assert inputs(flat()) == inputs(quick)


def test_both_ends_of_every_link_know_it() -> None:
    nodes = {node["id"]: node for node in INSIDE["nodes"]}
    for link in INSIDE["links"]:
        number, start, slot, target, place, kind = (
            link[key] for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
        )
        giver = INSIDE["inputs"][slot] if start == ENTRANCE else nodes[start]["outputs"][slot]
        taker = INSIDE["outputs"][place] if target == EXIT else nodes[target]["inputs"][place]
        assert number in giver.get("linkIds", giver.get("links", []))
        assert number == taker.get("link", taker.get("linkIds", [None])[0])
        assert giver["type"] == taker["type"] == kind


def test_what_stands_on_the_node_is_what_leads_inside() -> None:
    assert OUTSIDE["type"] == INSIDE["id"]
    assert INSIDE["name"] == OUTSIDE["title"] == NAME
    for side in ("inputs", "outputs"):
        assert [slot["name"] for slot in OUTSIDE[side]] == [slot["name"] for slot in INSIDE[side]]
    assert len(INSIDE["inputs"]) <= 10


def test_every_widget_on_the_node_is_one_of_a_node_inside() -> None:
    nodes = {str(node["id"]): node for node in INSIDE["nodes"]}
    shown = [tuple(pair) for pair in OUTSIDE["properties"]["proxyWidgets"]]
    assert all(name in nodes[number]["widgets_values_named"] for number, name in shown)
    linked = {slot["name"] for slot in INSIDE["inputs"] if slot["type"] != "IMAGE"}
    assert linked | {"control_after_generate"} == {name for _, name in shown}


@pytest.mark.parametrize("node", [OUTSIDE, *INSIDE["nodes"]], ids=lambda node: str(node["id"]))
def test_every_node_says_which_pack_brings_it(node: dict[str, Any]) -> None:
    version = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)
    assert version is not None
    assert (node["properties"]["cnr_id"], node["properties"]["ver"]) == ("i2v-tensorrt", version[1])

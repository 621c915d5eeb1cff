"""Reads a graph in the page's format (version 0.4) as the page does when it is run."""

import math
from collections.abc import Mapping
from typing import Any

from i2v_tensorrt.cli.node_info import inputs_of

Graph = dict[str, Any]
Prompt = dict[str, dict[str, Any]]
ObjectInfo = Mapping[str, Mapping[str, Any]]

NOTES = ("Note", "MarkdownNote")
ANY = "*"
"""The kind of an input that takes whatever another node gives."""
WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
UNSENT = 1
"""How many values of its own the page keeps behind one: what to do with a seed, the upload button of a picture."""


def to_prompt(graph: Graph, object_info: ObjectInfo) -> Prompt:
    """The graph in the API's format; values that the node classes do not know are left out, as old hosts do."""
    links = {link[0]: [str(link[1]), link[2]] for link in graph["links"]}
    return {
        str(node["id"]): {
            "class_type": node["type"],
            "inputs": {**_values(node, object_info[node["type"]]), **_linked(node, links)},
            "_meta": {"title": node.get("title")},
        }
        for node in graph["nodes"]
        if node["type"] not in NOTES
    }


def faults(prompt: Prompt, object_info: ObjectInfo) -> list[str]:
    """What a host would refuse in a prompt, a line each."""
    found = []
    for number, node in prompt.items():
        if node["class_type"] not in object_info:
            found.append(f"{number}: no node {node['class_type']}")
            continue
        known, given = inputs_of(object_info[node["class_type"]]), node["inputs"]
        needed = [name for name, (_, settings) in known.items() if not settings["optional"]]
        found += [f"{number}: no input {name}" for name in given if name not in known]
        found += [f"{number}: {name} is missing" for name in needed if name not in given]
        found += [
            f"{number}: {name} cannot be {given[name]!r}"
            for name, (kind, settings) in known.items()
            if name in given and not _takes(kind, _kinds(given[name], settings, prompt, object_info))
        ]
    return found


def _takes(kind: str, found: set[str]) -> bool:
    """Whether an input of that kind, or of several by commas, takes one of the found kinds."""
    return not found.isdisjoint(kind.split(",")) or (kind == ANY and bool(found))


def _kinds(value: Any, settings: Mapping[str, Any], prompt: Prompt, object_info: ObjectInfo) -> set[str]:
    """The kinds of input that would take the value under these settings."""
    if isinstance(value, list):
        source, slot = value
        class_type = prompt.get(source, {}).get("class_type", "")
        return set(object_info.get(class_type, {"output": []})["output"][slot : slot + 1])
    if isinstance(value, bool):
        return {"BOOLEAN"}
    if isinstance(value, int | float):
        within = settings.get("min", -math.inf) <= value <= settings.get("max", math.inf)
        return set() if not within else {"INT", "FLOAT"} if isinstance(value, int) else {"FLOAT"}
    return {"COMBO"} if value in settings.get("options", ()) else {"STRING"}


def _linked(node: Mapping[str, Any], links: Mapping[int, list[Any]]) -> dict[str, list[Any]]:
    return {slot["name"]: links[slot["link"]] for slot in node["inputs"] if slot["link"] is not None}


def _values(node: Mapping[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    """By position, which is how every version of the page reads them; inputs younger than the file have none."""
    values, found = list(node["widgets_values"]), {}
    for name, (kind, settings) in inputs_of(info).items():
        if kind not in WIDGETS or settings.get("forceInput"):
            continue
        if not values and settings["optional"]:
            break
        found[name] = values.pop(0)
        if settings.get("control_after_generate") or settings.get("image_upload"):
            del values[:UNSENT]
    return found

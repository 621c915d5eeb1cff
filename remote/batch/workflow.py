"""The workflow of a queue: read from its file, changed by `--set`, with the one place where a picture goes."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...common.errors import InputError

Prompt = dict[str, dict[str, Any]]
NodeInfo = Callable[[str], Mapping[str, Any] | None]
"""Function from a node class to its description, as in /object_info; None for a class that the server does not have."""
PICTURE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
"""Endings, in small letters, of files that are taken for pictures."""


class UsageError(InputError):
    """The command line asks for something that cannot be."""


@dataclass(frozen=True)
class Place:
    """An input of a node."""

    node_id: str
    name: str


@dataclass(frozen=True)
class Workflow:
    """A graph in API format, and the input for the picture, if there is one."""

    prompt: Prompt
    picture: Place | None = None
    extra_data: Mapping[str, Any] = field(default_factory=dict, repr=False)
    """What goes beside the graph: the page's workflow, keys of partner nodes. No part of the digest, stored nowhere."""

    @property
    def digest(self) -> str:
        """Digest of everything that decides the result but the picture: without titles and the picture's name."""
        bare = {
            node_id: [node["class_type"], {**node["inputs"], **self._hidden(node_id)}]
            for node_id, node in self.prompt.items()
        }
        return sha256(json.dumps(bare, sort_keys=True).encode()).hexdigest()

    def with_picture(self, name: str | None) -> Prompt:
        """The prompt with an uploaded picture, or as it is if there is none."""
        if self.picture is None or name is None:
            return self.prompt
        node = self.prompt[self.picture.node_id]
        return {**self.prompt, self.picture.node_id: {**node, "inputs": {**node["inputs"], self.picture.name: name}}}

    def title(self, node_id: str) -> str:
        """Title of a node; a node that was expanded out of another has the other's title."""
        node = self.prompt.get(node_id) or self.prompt.get(node_id.split(":")[0].split(".")[0])
        return node_id if node is None else title_of(node)

    def _hidden(self, node_id: str) -> dict[str, None]:
        place = self.picture
        return {place.name: None} if place is not None and place.node_id == node_id else {}


def read_workflow(path: Path) -> tuple[Prompt, Mapping[str, Any]]:
    """The graph in the file, and what goes beside it where the file is the body of a request.

    Raises UsageError for a file without a graph in API format.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"Expected a workflow at {path}, found none: {error.strerror or error}.") from error
    except ValueError as error:
        raise UsageError(f"{path} should hold a workflow in JSON, but does not: {error}.") from error
    return graph_of(content, str(path))


def graph_of(content: Any, name: str) -> tuple[Prompt, Mapping[str, Any]]:
    """The graph in JSON that was read, and what goes beside it; raises UsageError, which calls it by the name."""
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        raise UsageError(
            f"{name} is a workflow as the page saves it: open it there, choose Export (API) in the menu, "
            "and give that file."
        )
    extra_data: object = {}
    if isinstance(content, dict) and isinstance(content.get("prompt"), dict):
        content, extra_data = content["prompt"], content.get("extra_data") or {}  # the body of a request
    if not isinstance(content, dict) or not content or not all(_is_node(node) for node in content.values()):
        raise UsageError(f"{name} should map node ids to nodes with class_type and inputs, and holds something else.")
    if not isinstance(extra_data, dict):
        raise UsageError(f"{name} should have an object as extra_data, found {type(extra_data).__name__}.")
    return content, extra_data


def set_inputs(prompt: Prompt, settings: Collection[str], info: NodeInfo) -> Prompt:
    """The prompt with each `node.input=value` of the settings applied.

    A node is named by its id, or by its title or class where only one has it; a value is JSON where
    it can be read as JSON, else text. Raises UsageError, which names the existing nodes and inputs.
    """
    changed = {node_id: {**node, "inputs": dict(node["inputs"])} for node_id, node in prompt.items()}
    for setting in settings:
        place, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set takes NODE.INPUT=VALUE, found {setting}.")
        found = find_input(changed, place, info)
        changed[found.node_id]["inputs"][found.name] = parse_value(value)
    return changed


def parse_value(text: str) -> Any:
    """The JSON that the text is, else the text itself; NaN and Infinity are no JSON."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def find_input(prompt: Prompt, named: str, info: NodeInfo) -> Place:
    """The place that `node.input` names; titles and inputs may have points in them."""
    for at, letter in enumerate(named):
        node_id = find_node(prompt, named[:at]) if letter == "." else None
        if node_id is not None:
            return _input_of(prompt, node_id, named[at + 1 :], info)
    if "." not in named:
        raise UsageError(f"An input is named as NODE.INPUT, found {named}.")
    known = ", ".join(describe(node_id, node) for node_id, node in prompt.items())
    raise UsageError(f"There is no node for {named}; there are {known}.")


def find_node(prompt: Prompt, named: str) -> str | None:
    """The id of the node with that id, title or class, in this order; None if there is none.

    Raises UsageError where several have the title or the class.
    """
    if named in prompt:
        return named
    for name_of in (title_of, lambda node: node["class_type"]):
        found = [node_id for node_id, node in prompt.items() if name_of(node) == named]
        if len(found) > 1:
            raise UsageError(f"{named} names {len(found)} nodes, so name one of them by its id: {', '.join(found)}.")
        if found:
            return found[0]
    return None


def find_picture(prompt: Prompt) -> Place:
    """Input for the picture: the only LoadImage, or the only node with a file name in `image`; or UsageError."""
    loaders = [node_id for node_id, node in prompt.items() if isinstance(node["inputs"].get("image"), str)]
    core = [node_id for node_id in loaders if prompt[node_id]["class_type"] == "LoadImage"]
    chosen = core if len(core) == 1 else loaders
    if len(chosen) != 1:
        there = ", ".join(describe(node_id, prompt[node_id]) for node_id in loaders) or "none"
        raise UsageError(f"Expected one node that loads a picture, found {there}: name the input with --into.")
    return Place(chosen[0], "image")


def title_of(node: Mapping[str, Any]) -> str:
    """The title that its maker gave a node, else its class."""
    return (node.get("_meta") or {}).get("title") or node["class_type"]


def describe(node_id: str, node: Mapping[str, Any]) -> str:
    """A node by all the names that it can be called by."""
    title, class_type = title_of(node), node["class_type"]
    return f"{node_id} ({class_type})" if title == class_type else f"{node_id} ({title}, {class_type})"


def _input_of(prompt: Prompt, node_id: str, name: str, info: NodeInfo) -> Place:
    node = prompt[node_id]
    known = dict.fromkeys(node["inputs"])
    if name in known:
        return Place(node_id, name)
    declared = (info(node["class_type"]) or {}).get("input", {})
    known |= dict.fromkeys(key for kind in ("required", "optional") for key in declared.get(kind) or {})
    # A dynamic input's further inputs begin with its name: `format.codec`.
    if name in known or name.split(".")[0] in known:
        return Place(node_id, name)
    raise UsageError(f"Node {describe(node_id, node)} has no input {name}; it has {', '.join(known) or 'none'}.")


def _is_node(node: Any) -> bool:
    return isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)


def _refuse(constant: str) -> None:
    raise ValueError(constant)

"""Every node of the pack refuses in a sentence what stands in the place of a link: ComfyUI lets any JSON pass there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.cli.node_info import PREFIX, inputs_of, stored
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.helpers.graph import ANY, WIDGETS
from i2v_tensorrt.tests.live.answers import failure
from i2v_tensorrt.tests.live.graphs import Prompt, node
from i2v_tensorrt.tests.live.ids import CHECKPOINT

LORA = "style.safetensors"
INFO = {name: info for name, info in stored().items() if name.startswith(PREFIX)}
NODE, SHOWN = "1", "2"


@pytest.fixture(scope="module", autouse=True)
def lora(base_directory: Path) -> Iterator[None]:
    """The file that the list of the node I2V LoRA has."""
    path = base_directory / "models" / "loras" / LORA
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"never read")
    yield
    path.unlink()


def sockets(kind: str) -> list[str]:
    """The inputs of a node that take a link alone, the needed ones first."""
    known = inputs_of(INFO[kind]).items()
    return [name for name, (type_, _) in known if type_ not in (*WIDGETS, ANY)]


def with_values(kind: str, **values: Any) -> Prompt:
    """The node with its widgets as they are at first, 5 in every socket that needs a link, and those values."""
    known = inputs_of(INFO[kind]).items()
    widgets = {
        name: settings.get("default", settings.get("options", [""])[0])
        for name, (type_, settings) in known
        if type_ in WIDGETS
    }
    needed = {name: 5 for name in sockets(kind) if not dict(known)[name][1]["optional"]}
    if "checkpoint" in widgets:
        widgets["checkpoint"] = CHECKPOINT
    prompt = {NODE: node(kind, **widgets, **{**needed, **values})}
    if not INFO[kind]["output_node"]:
        prompt[SHOWN] = node("PreviewAny", source=[NODE, 0])
    return prompt


def refusal(client: ComfyClient, prompt: Prompt) -> str:
    """The sentence with which the node ends the run."""
    error = failure(client, prompt)
    head = f"node {NODE} ({prompt[NODE]['class_type']}) failed with i2v_tensorrt.InputError: "
    assert error.startswith(head), error
    return error.removeprefix(head)


@pytest.mark.parametrize("kind", sorted(kind for kind in INFO if sockets(kind)))
@pytest.mark.parametrize("value", [5, "x\ny", {"a": 1}, None, True], ids=repr)
def test_a_value_in_the_place_of_a_link(client: ComfyClient, kind: str, value: object) -> None:
    first, *_ = sockets(kind)
    found = repr(value) if isinstance(value, int | str) else f"a {type(value).__name__}"
    expected = f"Expected {first} over a link from a node that gives it, found {found}."
    assert refusal(client, with_values(kind, **{first: value})) == expected


@pytest.mark.parametrize("kind", sorted(INFO))
def test_a_link_to_an_input_that_the_node_does_not_have(client: ComfyClient, kind: str) -> None:
    prompt = with_values(kind, engine_of_mine=["9", 0])
    prompt["9"] = node("PrimitiveBoolean", value=True)
    known = ", ".join(inputs_of(INFO[kind]))
    wanted = f"inputs among {known}" if known else "no inputs"
    assert refusal(client, prompt) == f"Expected {wanted}, found 'engine_of_mine'."

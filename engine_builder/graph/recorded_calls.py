"""Calls of a network in real clips: the source of scales for int8 and fp8, and of the parity check's inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ...common.errors import InputError

if TYPE_CHECKING:
    import torch

Item = TypeVar("Item")
RECORDED = "recorded.safetensors"
"""In an engine's folder: the recorded calls that the parity check compares it on."""
PARITY_CALLS = 5


@dataclass(frozen=True)
class Call:
    """A network's call in a real clip: its inputs, and eager PyTorch's outputs, by name."""

    inputs: Mapping[str, torch.Tensor]
    outputs: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Calibration:
    """Calls of a network in real clips, in a safetensors file."""

    path: Path
    name: str = ""
    """Digest of the recording: pictures, prompts, sizes, model. It is part of an engine's specification."""

    def calls(self) -> list[Call]:
        """The calls, floating numbers in fp32; raises InputError for a file that holds none."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        found: dict[int, dict[str, dict[str, torch.Tensor]]] = {}
        try:
            for key, tensor in load_file(self.path).items():
                number, side, name = key.split(".", 2)
                found.setdefault(int(number), {"inputs": {}, "outputs": {}})[side][name] = tensor
        except (OSError, SafetensorError, LookupError, ValueError) as error:
            raise InputError(f"{self.path} is no calibration: {error}.") from error
        if not found:
            raise InputError(f"The calibration {self.path} holds no calls.")
        return [Call(**found[number]) for number in sorted(found)]


def save_calls(calls: Sequence[Call], path: Path) -> None:
    """Writes several calls of a network, with tensors on any device and of any dtype."""
    from safetensors.torch import save_file

    named = {
        f"{number}.{side}.{key}": x
        for number, call in enumerate(calls)
        for side, tensors in (("inputs", call.inputs), ("outputs", call.outputs))
        for key, x in tensors.items()
    }
    save_file({key: (x.float() if x.is_floating_point() else x).cpu().contiguous() for key, x in named.items()}, path)


def save_parity_calls(calibration: Calibration, folder: Path) -> None:
    """Writes a few of the calls, evenly chosen, beside the engine: it may meet its GPU much later, and elsewhere."""
    save_calls(spread(calibration.calls(), PARITY_CALLS), folder / RECORDED)


def spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most `most` of the items, evenly chosen, with the first."""
    count = min(len(items), most)
    return [items[number * len(items) // count] for number in range(count)]

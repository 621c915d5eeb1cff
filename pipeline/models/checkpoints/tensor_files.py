"""Tensors of files in other layouts than diffusers': safetensors alone, whose tensors stay on disk until used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ....common.errors import CheckpointError
from .diffusers_folder import PICKLES, tensor_shapes

if TYPE_CHECKING:
    import torch

Tensors = Mapping[str, "torch.Tensor"]
INSTEAD = (
    "for DynamiCrafter dynamicrafter_512_fp16_pruned.safetensors and its like in Kijai/DynamiCrafter_pruned, for Wan "
    "those in Comfy-Org/Wan_2.1_ComfyUI_repackaged"
)


def check_files(paths: Sequence[Path]) -> None:
    """Raises CheckpointError for a pickle, and for a file that is missing or not whole."""
    for path in paths:
        if path.suffix in PICKLES:
            raise CheckpointError(
                f"{path} is a pickle, which can run code: expected a .safetensors file, usually {INSTEAD}."
            )
        tensor_shapes([path])


def read_tensors(paths: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The tensors of all files by name, each still in its file.

    Raises CheckpointError for a pickle, for a file that is missing or not whole, and for a tensor in two files.
    """
    from safetensors import safe_open

    found: dict[str, torch.Tensor] = {}
    for path in paths:
        check_files([path])
        with safe_open(path, framework="pt") as stream:
            for name in stream.keys():  # noqa: SIM118
                if name in found:
                    raise CheckpointError(f"{path} has the tensor {name}, which another of the files has too.")
                found[name] = stream.get_tensor(name)
    return found


def below(tensors: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names have a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def prefix_of(tensors: Tensors, name: str) -> str | None:
    """What stands before a tensor of this name, the shortest where there are several; None where there is none."""
    found = [each.removesuffix(name) for each in tensors if each == name or each.endswith(f".{name}")]
    return min(found, key=len, default=None)

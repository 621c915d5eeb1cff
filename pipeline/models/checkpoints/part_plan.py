"""Plan of a checkpoint that lies in files of other layouts: its parts in diffusers' names, and their configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ....common.errors import CheckpointError
from .tensor_files import Tensors


@dataclass(frozen=True)
class PartPlan:
    """A part: its class for model_index.json, and either a configuration with tensors or a folder to copy."""

    library: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    folder: Path | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Further files of the part by name, such as a tokenizer's."""
    source: Path | None = None
    """The one file that the tensors lie in, where they do."""


@dataclass(frozen=True)
class Plan:
    """A checkpoint's parts, and what else its model_index.json says, its pipeline's class above all."""

    index: Mapping[str, Any]
    parts: Mapping[str, PartPlan]


def fitted(
    title: str, wanted: Mapping[str, torch.Size], found: Mapping[str, torch.Tensor], unused: Sequence[str] = ()
) -> dict[str, torch.Tensor]:
    """The tensors of a network's own names, each in the network's shape.

    Raises CheckpointError, naming the first, for one that is missing or of another size, and for one of the file that
    the network has no use for.
    """
    for name, shape in wanted.items():
        if name not in found:
            raise CheckpointError(f"Expected the file to have all tensors of {title}, found none for {name}.")
        if found[name].numel() != shape.numel():
            raise CheckpointError(
                f"Expected the tensor for {name} of {title} as {list(shape)}, found {list(found[name].shape)}."
            )
    left = sorted({*found} - {*wanted}) or list(unused)
    if left:
        raise CheckpointError(f"Expected no tensors beside those of {title}, found {len(left)}, such as {left[0]}.")
    return {name: found[name].reshape(shape) for name, shape in wanted.items()}


def shapes_of(kind: Any, config: Mapping[str, Any]) -> dict[str, torch.Size]:
    """The shape of each tensor of a network of diffusers or the pack, by name; nothing is allocated."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in kind.from_config(config).state_dict().items()}

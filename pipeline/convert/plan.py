"""Plan of a converted checkpoint: what its folder will hold, and where each part comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ...common.errors import CheckpointError
from ..models.checkpoints.diffusers_folder import CONFIG_NAMES
from .sources import Tensors


@dataclass(frozen=True)
class PartPlan:
    """A part: its class for model_index.json, and either a configuration with tensors or a folder to copy."""

    library: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Tensors = field(default_factory=dict)
    folder: Path | None = None


@dataclass(frozen=True)
class Plan:
    """A checkpoint's parts, and what else its model_index.json says, its pipeline's class above all."""

    index: Mapping[str, Any]
    parts: Mapping[str, PartPlan]


@dataclass(frozen=True)
class Wanted:
    """A part that the file does not have: the classes that are accepted, and the model that usually has it."""

    classes: tuple[str, ...]
    usually: str


def find_parts(wanted: Mapping[str, Wanted], folders: Sequence[Path], title: str) -> dict[str, PartPlan]:
    """Parts in the user's folders, each a part itself or a model's folder with the part in it.

    Raises CheckpointError for parts that are in none of them, with the places that usually have them.
    """
    found = {name: _find_part(name, part, folders) for name, part in wanted.items()}
    missing = [name for name, part in found.items() if part is None]
    if missing:
        told = "; ".join(f"{name} (usually in {wanted[name].usually})" for name in missing)
        raise CheckpointError(
            f"{title} needs parts that its files do not hold: name folders that have them with --parts: {told}."
        )
    return {name: part for name, part in found.items() if part is not None}


def _find_part(name: str, wanted: Wanted, folders: Sequence[Path]) -> PartPlan | None:
    for folder in folders:
        for place in (folder / name, folder):
            path = place / CONFIG_NAMES.get(name, "config.json")
            if place.name == name and path.is_file():
                return _copied(path, wanted)
    return None


def _copied(path: Path, wanted: Wanted) -> PartPlan:
    from ..models.checkpoints.diffusers_folder import read_json

    config = read_json(path)
    named = config.get("architectures") or [config.get("_class_name") or config.get("tokenizer_class")]
    class_name = str(named[0] or wanted.classes[0])
    if class_name not in wanted.classes:
        raise CheckpointError(f"{path}: expected {' or '.join(wanted.classes)}, found {class_name}.")
    library = "diffusers" if class_name.startswith("Autoencoder") else "transformers"
    return PartPlan(library, class_name, config, folder=path.parent)


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

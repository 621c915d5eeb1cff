"""Parts of a converted checkpoint that its files lack, in folders that the user names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import CheckpointError
from ..models.checkpoints.diffusers_folder import CONFIG_NAMES, read_json
from ..models.checkpoints.part_plan import PartPlan


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
    config = read_json(path)
    named = config.get("architectures") or [config.get("_class_name") or config.get("tokenizer_class")]
    class_name = str(named[0] or wanted.classes[0])
    if class_name not in wanted.classes:
        raise CheckpointError(f"{path}: expected {' or '.join(wanted.classes)}, found {class_name}.")
    library = "diffusers" if class_name.startswith("Autoencoder") else "transformers"
    return PartPlan(library, class_name, config, folder=path.parent)

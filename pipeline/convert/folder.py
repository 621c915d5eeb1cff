"""The files of a checkpoint in diffusers' layout, written part by part from a plan."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from ...common.atomic_file import atomic_file, write_text
from ..models.checkpoints.diffusers_folder import CONFIG_NAMES, INDEX, LINK, Link, stem_of
from ..models.checkpoints.part_plan import PartPlan, Plan
from .writer import write_tensors


def write_part(folder: Path, name: str, part: PartPlan, *, link: bool = False) -> None:
    """Writes a part's files, weights first: a part with a configuration is whole.

    With `link` the weights stay in their file, whose name is written in their place. Raises StorageError when the disk
    refuses.
    """
    config = folder / CONFIG_NAMES.get(name, "config.json")
    if config.is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    if part.folder is not None:
        for path in sorted(part.folder.iterdir(), key=lambda path: path.name == config.name):
            if path.is_file():
                _copy(path, folder / path.name)
        return
    if link and part.source is not None:
        found = Link(part.source, {name: tuple(tensor.shape) for name, tensor in part.tensors.items()})
        write_text(folder / LINK, json.dumps(found.to_json()) + "\n")
    elif part.tensors:
        write_tensors(folder / f"{stem_of(folder)}.safetensors", part.tensors)
    for other, content in part.files.items():
        with atomic_file(folder / other) as temporary:
            temporary.write_bytes(content)
    write_text(config, json.dumps(part.config, indent=2) + "\n")


def _copy(path: Path, target: Path) -> None:
    if target.is_file():
        return
    with atomic_file(target) as temporary:
        shutil.copyfile(path, temporary)


def write_index(folder: Path, plan: Plan) -> None:
    """Writes a checkpoint's model_index.json."""
    parts = {name: [part.library, part.class_name] for name, part in plan.parts.items()}
    write_text(folder / INDEX, json.dumps({**plan.index, **parts}, indent=2) + "\n")

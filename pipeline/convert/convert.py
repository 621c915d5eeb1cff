"""A checkpoint's folder from the files that it is published in: written part by part, complete or not there."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ...common.atomic_file import write_text
from ...common.errors import CheckpointError, StorageError
from ..models import single_files
from ..models.checkpoints.part_plan import Plan
from ..models.checkpoints.tensor_files import check_files, read_tensors
from ..models.dynamicrafter.published_settings import KINDS as DYNAMICRAFTER_KINDS
from ..models.dynamicrafter.published_settings import TOONCRAFTER
from ..models.registry import open_model
from . import dynamicrafter
from .folder import write_index, write_part
from .named_files import named_sources

Say = Callable[[str], None]
KINDS = (*DYNAMICRAFTER_KINDS, TOONCRAFTER)
"""Names of checkpoints whose tensors do not always tell them apart."""
DONE = "done.json"
"""In an unfinished folder: what it is made from."""


def convert(
    files: Sequence[Path], folders: Sequence[Path], out: Path, kind: str | None, say: Say = lambda _: None
) -> Path:
    """Writes the folder `out`, and returns it once it opens as a model.

    `folders` have the parts that the files lack, and `kind` says what tensors do not. What an earlier run has finished
    of the same files is kept. Raises CheckpointError and StorageError.
    """
    if out.exists():
        raise StorageError(f"{out} is there already: take another name, or remove it first.")
    plan = plan_of(files, folders, kind)
    unfinished = out.with_name(f"{out.name}.unfinished")
    try:
        _begin(unfinished, _identity(files, folders, kind))
        for name, part in plan.parts.items():
            say(f"{name}: {'copied' if part.folder else f'{len(part.tensors)} tensors'}")
            write_part(unfinished / name, name, part)
        write_index(unfinished, plan)
        open_model(unfinished)
        (unfinished / DONE).unlink()
        unfinished.rename(out)
    except OSError as error:
        raise StorageError(f"{out} could not be written: {error.strerror or error}.") from error
    return out


def plan_of(files: Sequence[Path], folders: Sequence[Path], kind: str | None) -> Plan:
    """The plan of a checkpoint that is known by its tensors."""
    check_files(files)
    sources = named_sources(files)
    if sources is not None:
        if folders or kind is not None:
            raise CheckpointError(
                f"--parts and --kind are for DynamiCrafter alone: expected all of {sources.paths[0].name} as files, "
                f"found {'--kind' if kind else '--parts'}."
            )
        return single_files.plan_of(sources)
    tensors = read_tensors(files)
    if dynamicrafter.recognises(tensors):
        return dynamicrafter.plan(tensors, folders, kind)
    raise CheckpointError(
        f"Expected the tensors of DynamiCrafter, Stable Video Diffusion or Wan in {files[0]}, found {len(tensors)} of "
        f"another model, such as {min(tensors)}."
    )


def _identity(files: Sequence[Path], folders: Sequence[Path], kind: str | None) -> str:
    """What a folder is made from: an unfinished one of anything else is begun anew."""
    stats = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    content = [stats, [str(folder.resolve()) for folder in folders], kind]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _begin(folder: Path, identity: str) -> None:
    mark = folder / DONE
    if folder.exists() and (not mark.is_file() or mark.read_text("utf-8") != identity):
        shutil.rmtree(folder)
    write_text(mark, identity)

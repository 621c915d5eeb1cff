"""A folder in diffusers' layout whose weights stay in the files of other layouts that they are in."""

from __future__ import annotations

import hashlib
import json
import tempfile
from pathlib import Path

from ...common.errors import StorageError
from ..models import clip_vision_file, single_files
from ..models.checkpoints.diffusers_folder import LINKED
from ..models.parts import code_of
from ..models.single_files import Sources, plan_of
from ..models.svd import single_file as svd
from ..models.wan import single_file as wan
from .folder import write_index, write_part

DIGITS = 16


def linked_folder(sources: Sources, base: Path) -> Path:
    """A folder that opens as a model of those files; made once, for as long as the files are the same.

    It lies below `base`, in the place for such, and has configurations and the tokenizer alone, and the names of the
    files. Raises CheckpointError for files whose tensors do not fit, StorageError when the disk refuses.
    """
    stats = [(part, str(path), path.stat().st_size, path.stat().st_mtime_ns) for part, path in sources.files.items()]
    readers = code_of(*(module.__name__ for module in (single_files, clip_vision_file, svd, wan)))
    digest = hashlib.sha256(json.dumps([sources.model, stats, readers]).encode()).hexdigest()[:DIGITS]
    root = base.joinpath(*LINKED)
    folder = root / f"{sources.paths[0].stem}-{digest}"
    if folder.is_dir():
        return folder
    plan = plan_of(sources)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root) as work:
            made = Path(work) / folder.name
            for name, part in plan.parts.items():
                write_part(made / name, name, part, link=True)
            write_index(made, plan)
            made.rename(folder)
    except OSError as error:
        if folder.is_dir():
            return folder  # another process was faster
        raise StorageError(f"{folder} could not be written: {error.strerror or error}.") from error
    return folder

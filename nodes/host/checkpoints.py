"""Checkpoints in ComfyUI's folders: in diffusers' layout, and as single files whose parts lie in several of them."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...common.errors import CheckpointError
from ...common.pack_paths import BUNDLED, BUNDLED_NAME
from ...pipeline.convert.link import linked_folder
from ...pipeline.models.checkpoints.diffusers_folder import INDEX
from ...pipeline.models.checkpoints.hub_cache import snapshots
from ...pipeline.models.checkpoints.published import download_command
from ...pipeline.models.checkpoints.single_file import SUFFIX, single_file
from ...pipeline.models.single_files import Sources, find_sources
from .folders import DIFFUSERS, MODELS, own_folder
from .safe_name import listed

DENOISERS = ("checkpoints", "diffusion_models")
"""ComfyUI's folders for files with a denoiser."""
PARTS = ("vae", "text_encoders", "clip_vision", *DENOISERS)
"""ComfyUI's folders for files with a network of a model."""
_SEARCH_DEPTH = 2


def checkpoints() -> dict[str, Path]:
    """Every folder with a model_index.json below models/i2v and models/diffusers, by its relative name.

    One in the layout of Hugging Face's cache has its repository's name. Last the model that the pack brings along,
    unless one of that name is there.
    """
    found: dict[str, Path] = {}
    for root in _roots():
        for depth in range(1, _SEARCH_DEPTH + 1):
            for index in sorted(root.glob("/".join(["*"] * depth + [INDEX]))):
                found.setdefault(index.parent.relative_to(root).as_posix(), index.parent)
        for name, folder in snapshots(root):
            found.setdefault(name, folder)
    if (BUNDLED / INDEX).is_file():
        found.setdefault(BUNDLED_NAME, BUNDLED)
    return found


def single_files() -> dict[str, Path]:
    """Single files with the denoiser of a known model in models/i2v and in ComfyUI's folders, by their names there.

    Which models they hold is read off their headers.
    """
    found = _files(DENOISERS).items()
    return {name: path for name, path in found if (file := single_file(path)) is not None and file.model is not None}


def checkpoint(name: object) -> Path | Sources:
    """A checkpoint by its name: a folder, or the files of a model; no path is made from a workflow's text.

    Raises CheckpointError for a single file that is not served or some parts of which are missing, and for an unknown
    name, with the folder looked in and the command that downloads the published one.
    """
    found = checkpoints()
    if path := listed(name, found):
        return path
    if path := listed(name, single_files()):
        return find_sources(path, _files(PARTS).values())
    if str(name).lower().endswith(".gguf"):
        raise CheckpointError(
            f"{str(name)[:80]} is quantized as GGUF: the loader of the pack ComfyUI-GGUF opens it, and I2V Compile "
            "Model behind that runs it by engines."
        )
    root = _roots()[0]
    known = f"found {', '.join(sorted(found))}" if found else "found none"
    command = download_command(str(name), root)
    words = (
        f"to download the published one: {command}"
        if command
        else "commands that download the published ones are in the pack's docs/files.md."
    )
    raise CheckpointError(f"There is no checkpoint {str(name)[:80]!r} in {root} ({known}); {words}")


def checkpoint_folder(found: Path | Sources) -> Path:
    """The folder that opens as a checkpoint; for single files one that leads to them, in the user's folder."""
    return linked_folder(found, own_folder().parent) if isinstance(found, Sources) else found


def checkpoint_files(found: Path | Sources) -> list[Path]:
    """Every file that a checkpoint is read from."""
    return found.paths if isinstance(found, Sources) else sorted(found.rglob("*.*"))


def _files(keys: tuple[str, ...]) -> dict[str, Path]:
    """Files in models/i2v, and those of ComfyUI's folders that it lists, by their names there."""
    found = {path.name: path for root in _roots() for path in sorted(root.glob(f"*{SUFFIX}"))}
    for key in keys:
        for name in folder_paths.get_filename_list(key):
            path = folder_paths.get_full_path(key, name) if name.endswith(SUFFIX) else None
            if path is not None:
                found.setdefault(name if name not in found else f"{key}/{name}", Path(path))
    return found


def _roots() -> list[Path]:
    return [Path(root) for key in (MODELS, DIFFUSERS) for root in folder_paths.get_folder_paths(key)]

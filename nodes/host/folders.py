"""ComfyUI's folders: checkpoints, LoRAs, engines, caches, inputs and outputs."""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

import nodes as host_nodes

from ...common.atomic_file import atomic_file
from ...common.errors import CheckpointError, StorageError
from ...common.pack_paths import BUNDLED, BUNDLED_NAME, PICTURE
from ...engine_builder.store.store import EngineStore
from ...pipeline.models.checkpoints.diffusers_folder import INDEX
from ...pipeline.models.checkpoints.file_digests import TABLE
from ...pipeline.models.checkpoints.hub_cache import snapshots
from ...pipeline.models.checkpoints.published import download_command
from ...pipeline.models.checkpoints.single_file import SUFFIX, single_file
from ...pipeline.tensor_cache import CacheLimits, ConditioningCache
from ...runtime import result_cache as results
from ...runtime import saved_videos as videos
from .output_path import SavePlace, digest_below, free_place
from .safe_name import listed

log = logging.getLogger(__name__)

MODELS, ENGINES, DIFFUSERS = "i2v", "i2v_engines", "diffusers"
PACK_AS_LOADED = Path(__file__).parent.parent.parent
"""This copy of the pack, by the path that ComfyUI loaded it from."""
SINGLE = ("checkpoints", "diffusion_models")
"""ComfyUI's folders for single files."""
_SEARCH_DEPTH = 2


def register_folders() -> None:
    """Registers models/i2v and models/i2v_engines with ComfyUI; extra_model_paths.yaml may move them."""
    for key in (MODELS, ENGINES):
        is_moved = key in folder_paths.folder_names_and_paths
        folder_paths.add_model_folder_path(key, str(Path(folder_paths.models_dir) / key), is_default=not is_moved)


def warn_of_another_copy(node_id: str) -> None:
    """Logs a warning where another copy of the pack is loaded already: its nodes are replaced by this one's."""
    other = host_nodes.NODE_CLASS_MAPPINGS.get(node_id)
    path = getattr(sys.modules.get(getattr(other, "__module__", "")), "__file__", None)
    if path is not None and Path(path).parent.parent != PACK_AS_LOADED:
        places = f"{Path(path).parent.parent} and {PACK_AS_LOADED}"
        log.warning("I2V TensorRT is installed twice, in %s: the second is used. Remove one of the two.", places)


def provide_picture() -> None:
    """Puts the picture of the shipped workflows into ComfyUI's input folder, so that they run as they open.

    One of that name that is there already stays, and a folder that may not be written is no reason to stop.
    """
    target = Path(folder_paths.get_input_directory()) / PICTURE.name
    if target.exists():
        return
    try:
        with atomic_file(target) as temporary:
            shutil.copyfile(PICTURE, temporary)
    except StorageError as error:
        log.warning("The workflows' picture is not among the inputs: %s", error)


def checkpoints() -> dict[str, Path]:
    """Every folder with a model_index.json below models/i2v and models/diffusers, by its relative name.

    One in the layout of Hugging Face's cache has its repository's name. Last the model that the pack brings along,
    unless one of that name is there.
    """
    found: dict[str, Path] = {}
    for root in _checkpoint_roots():
        for depth in range(1, _SEARCH_DEPTH + 1):
            for index in sorted(root.glob("/".join(["*"] * depth + [INDEX]))):
                found.setdefault(index.parent.relative_to(root).as_posix(), index.parent)
        for name, folder in snapshots(root):
            found.setdefault(name, folder)
    if (BUNDLED / INDEX).is_file():
        found.setdefault(BUNDLED_NAME, BUNDLED)
    return found


def checkpoint_folder(name: object) -> Path:
    """The folder of a checkpoint by its name; no path is made from a workflow's text.

    Raises CheckpointError for a single file, with what opens it, else with the folder looked in and the command that
    downloads the published one.
    """
    found = checkpoints()
    if path := listed(name, found):
        return path
    root = _checkpoint_roots()[0]
    if path := listed(name, single_files()):
        raise CheckpointError(_about(str(name), path, root))
    known = f"found {', '.join(sorted(found))}" if found else "found none"
    command = download_command(str(name), root)
    words = (
        f"to download the published one: {command}"
        if command
        else "commands that download the published ones are in the pack's docs/files.md."
    )
    raise CheckpointError(f"There is no checkpoint {str(name)[:80]!r} in {root} ({known}); {words}")


def single_files() -> dict[str, Path]:
    """Single files of known models in models/i2v and in ComfyUI's folders for them, by their names there.

    Which models they hold is read off their headers.
    """
    found = {path.name: path for root in _checkpoint_roots() for path in sorted(root.glob(f"*{SUFFIX}"))}
    for key in SINGLE:
        for name in folder_paths.get_filename_list(key):
            path = folder_paths.get_full_path(key, name) if name.endswith(SUFFIX) else None
            if path is not None:
                found.setdefault(name, Path(path))
    return {name: path for name, path in found.items() if single_file(path)}


def _about(name: str, path: Path, root: Path) -> str:
    """Sentence on a single file: what it holds, and who opens it."""
    file = single_file(path)
    if file is None:
        return f"{path} was a single file of a known model a moment ago, found another now: refresh the lists."
    return (
        f"{name} is a single file of {file.title}, with {file.content}: this node opens folders in diffusers' layout. "
        f"ComfyUI's own {file.loader} opens it, and I2V Compile Model behind that runs it by engines; "
        f"to download the folder: {download_command(file.published, root)}"
    )


def loras() -> dict[str, Path]:
    """Every .safetensors file in models/loras by its relative name."""
    names = (name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors"))
    found = {name: folder_paths.get_full_path("loras", name) for name in names}
    return {name: Path(path) for name, path in found.items() if path is not None}


def lora_file(name: object) -> Path:
    """The file of a LoRA by its name; no path is made from a workflow's text. Raises CheckpointError."""
    found = loras()
    if path := listed(name, found):
        return path
    root = folder_paths.get_folder_paths("loras")[0]
    raise CheckpointError(
        f"There is no LoRA {str(name)[:80]!r} in {root}: expected a .safetensors file there, found {len(found)} others."
    )


def _checkpoint_roots() -> list[Path]:
    return [Path(root) for key in (MODELS, DIFFUSERS) for root in folder_paths.get_folder_paths(key)]


def engine_store() -> EngineStore:
    """The store in models/i2v_engines."""
    return EngineStore(Path(folder_paths.get_folder_paths(ENGINES)[0]))


def _cache(name: str, limits: CacheLimits | None = None, what: str = "conditioning") -> ConditioningCache:
    """A cache of the server, kept in a folder that HTTP does not reach."""
    return ConditioningCache(Path(folder_paths.get_user_directory()) / "__i2v_tensorrt" / name, limits, what)


@lru_cache(maxsize=1)
def conditioning_cache() -> ConditioningCache:
    """The server's one cache of conditioning, shared by graph and API runs."""
    return _cache("conditioning")


@lru_cache(maxsize=1)
def result_cache() -> ConditioningCache:
    """The server's one cache of sampled latents; see `runtime.result_cache`."""
    return _cache("results", results.LIMITS, "result")


@lru_cache(maxsize=1)
def saved_videos() -> ConditioningCache:
    """The server's notes on which video came of which request; see `runtime.saved_videos`."""
    return _cache("videos", videos.LIMITS, "note on a video")


def keep_digests() -> None:
    """Keeps the digests of checkpoints' files beside the caches, so that the next server reads none of the files."""
    TABLE.keep_in(Path(folder_paths.get_user_directory()) / "__i2v_tensorrt" / "digests.json")


def save_place(
    prefix: object, suffix: str, width: int, height: int, *, temporary: bool = False
) -> AbstractContextManager[SavePlace]:
    """A free name in ComfyUI's output (or temp) folder from a prefix; see `output_path.free_place`."""
    if temporary:
        return free_place(Path(folder_paths.get_temp_directory()), prefix, suffix, width, height)
    root = Path(folder_paths.get_output_directory())
    return free_place(root, prefix, suffix, width, height, comfyui_saves_in)


def comfyui_saves_in(subfolder: str) -> bool:
    """Whether ComfyUI's own nodes save in a folder below its output folder: it alone decides on links that lead out.

    It makes the folder. 0.28 follows such links, 0.33 does not.
    """
    try:
        folder_paths.get_save_image_path(f"{subfolder}/clip", folder_paths.get_output_directory())
    except Exception:  # it raises no narrower one
        return False
    return True


def temporary_file(place: SavePlace) -> Path:
    """The file of a temporary place by the name that outlives its block."""
    return Path(folder_paths.get_temp_directory()).joinpath(place.subfolder, place.filename)


def digest_of_output(subfolder: str, filename: str) -> str | None:
    """The SHA-256 of a file in ComfyUI's output folder, or None; see `output_path.digest_below`."""
    return digest_below(Path(folder_paths.get_output_directory()), subfolder, filename, comfyui_saves_in)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """A fresh folder below ComfyUI's temp folder, removed at the end."""
    root = Path(folder_paths.get_temp_directory())
    try:
        root.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=f"{name}_", dir=root, ignore_cleanup_errors=True)
    except OSError as error:
        raise StorageError(f"No folder can be made in {root}: {error.strerror or error}.") from error
    with made as folder:
        yield Path(folder)


def metadata(hidden: Any) -> dict[str, Any]:
    """The prompt and the workflow to embed in a file; nothing when ComfyUI was started without metadata."""
    if args.disable_metadata or hidden is None:
        return {}
    prompt = {} if hidden.prompt is None else {"prompt": hidden.prompt}
    more = hidden.extra_pnginfo  # whatever the request said
    return {**prompt, **(more if isinstance(more, Mapping) else {})}

"""ComfyUI's folders: LoRAs, engines, caches, inputs and outputs."""

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
from ...common.pack_paths import PICTURES
from ...engine_builder.store.store import EngineStore
from ...pipeline.models.checkpoints.file_digests import TABLE
from ...pipeline.tensor_cache import CacheLimits, ConditioningCache
from ...runtime import result_cache as results
from ...runtime import saved_videos as videos
from .output_path import SavePlace, digest_below, free_place
from .safe_name import listed

log = logging.getLogger(__name__)

MODELS, ENGINES, DIFFUSERS, ONNX = "i2v", "i2v_engines", "diffusers", "onnx"
PACK_AS_LOADED = Path(__file__).parent.parent.parent
"""This copy of the pack, by the path that ComfyUI loaded it from."""


def register_folders() -> None:
    """Registers the pack's folders of models with ComfyUI, beside other packs' for ONNX files.

    extra_model_paths.yaml may move them.
    """
    for key in (MODELS, ENGINES, ONNX):
        is_moved = key in folder_paths.folder_names_and_paths
        folder_paths.add_model_folder_path(key, str(Path(folder_paths.models_dir) / key), is_default=not is_moved)


def warn_of_another_copy(node_id: str) -> None:
    """Logs a warning where another copy of the pack is loaded already: its nodes are replaced by this one's."""
    other = host_nodes.NODE_CLASS_MAPPINGS.get(node_id)
    path = getattr(sys.modules.get(getattr(other, "__module__", "")), "__file__", None)
    if path is not None and Path(path).parent.parent != PACK_AS_LOADED:
        places = f"{Path(path).parent.parent} and {PACK_AS_LOADED}"
        log.warning("I2V TensorRT is installed twice, in %s: the second is used. Remove one of the two.", places)


def provide_pictures() -> None:
    """Puts the pack's pictures into ComfyUI's input folder, so that the shipped workflows run as they open.

    One of such a name that is there already stays, and a folder that may not be written is no reason to stop.
    """
    folder = Path(folder_paths.get_input_directory())
    try:
        for picture in sorted(PICTURES.glob("*.png")):
            if not (folder / picture.name).exists():
                with atomic_file(folder / picture.name) as temporary:
                    shutil.copyfile(picture, temporary)
    except StorageError as error:
        log.warning("The pack's pictures are not among the inputs: %s", error)


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


def engine_store() -> EngineStore:
    """The store in models/i2v_engines."""
    return EngineStore(Path(folder_paths.get_folder_paths(ENGINES)[0]))


def own_folder() -> Path:
    """The server's folder for what the pack keeps, which HTTP does not reach."""
    return Path(folder_paths.get_user_directory()) / "__i2v_tensorrt"


def _cache(name: str, limits: CacheLimits | None = None, what: str = "conditioning") -> ConditioningCache:
    """A cache of the server."""
    return ConditioningCache(own_folder() / name, limits, what)


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
    TABLE.keep_in(own_folder() / "digests.json")


def save_place(
    prefix: object, suffix: str, width: int, height: int, *, temporary: bool = False
) -> AbstractContextManager[SavePlace]:
    """A free name in ComfyUI's output (or temp) folder from a prefix; see `output_path.free_place`."""
    scratch = Path(folder_paths.get_temp_directory())
    if temporary:
        return free_place(scratch, prefix, suffix, width, height)
    root = Path(folder_paths.get_output_directory())
    return free_place(root, prefix, suffix, width, height, comfyui_saves_in, scratch)


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


def output_sizes(subfolder: str) -> list[int]:
    """The bytes of each file in a folder below ComfyUI's output folder; none without the folder."""
    found = Path(folder_paths.get_output_directory()).joinpath(subfolder)
    try:
        return [path.stat().st_size for path in found.iterdir() if path.is_file() and not path.name.startswith(".")]
    except OSError:
        return []


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

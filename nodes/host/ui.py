"""All that the pack asks of ComfyUI: folders, memory, progress, previews, interruption, messages.

Nothing but this folder touches ComfyUI's internals, so that one of its releases can break these files alone.
"""

from __future__ import annotations

import dataclasses
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.latent_formats
import comfy.model_management as memory
import comfy.utils
import folder_paths
import latent_preview
import torch
from comfy.cli_args import args
from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...common.atomic_file import atomic_file
from ...common.errors import CheckpointError, I2VError, StorageError
from ...engine_builder.backends.base import Runner
from ...engine_builder.backends.registry import AUTO, choose_backend
from ...engine_builder.store.store import EngineStore
from ...pipeline.models.base import VideoModel
from ...pipeline.models.checkpoints.diffusers_folder import INDEX
from ...pipeline.models.checkpoints.file_digests import TABLE
from ...pipeline.models.latent_rgb import latent_rgb
from ...pipeline.tensor_cache import CacheLimits, ConditioningCache
from ...runtime import result_cache as results
from ...runtime import saved_videos as videos
from ...runtime.demo_model import BUNDLED, BUNDLED_NAME, PICTURE
from ...runtime.engines.residency import Concession, concede, is_encoder
from ...runtime.tools.table import Table
from .output_path import SavePlace, digest_below, free_place
from .patcher import RunnerPatcher, empty_cache, loaded_bytes, memory_of, patcher_of, unload, were_last_loaded
from .preview_grid import Sheet

log = logging.getLogger(__name__)

MODELS, ENGINES, DIFFUSERS = "i2v", "i2v_engines", "diffusers"
_SEARCH_DEPTH = 2


# Folders


def register_folders() -> None:
    """Tells ComfyUI of models/i2v and models/i2v_engines, which extra_model_paths.yaml may move."""
    for key in (MODELS, ENGINES):
        folder_paths.add_model_folder_path(key, str(Path(folder_paths.models_dir) / key), is_default=True)


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

    Last the model that the pack brings along, unless one of that name is there.
    """
    found: dict[str, Path] = {}
    for root in _checkpoint_roots():
        for depth in range(1, _SEARCH_DEPTH + 1):
            for index in sorted(root.glob("/".join(["*"] * depth + [INDEX]))):
                found.setdefault(index.parent.relative_to(root).as_posix(), index.parent)
    if (BUNDLED / INDEX).is_file():
        found.setdefault(BUNDLED_NAME, BUNDLED)
    return found


def checkpoint_folder(name: object) -> Path:
    """The folder of a checkpoint by its name; no path is made from what a workflow says.

    Raises CheckpointError with the folder looked in and the command that downloads the published one.
    """
    found = checkpoints()
    if isinstance(name, str) and name in found:
        return found[name]
    root = _checkpoint_roots()[0]
    known = f"found {', '.join(sorted(found))}" if found else "found none"
    raise CheckpointError(
        f"There is no checkpoint {str(name)[:80]!r} in {root} ({known}); to download the published one: "
        'hf download ali-vilab/i2vgen-xl --include "*.json" --include "*.txt" --include "*fp16.safetensors" '
        f'--local-dir "{root / "i2vgen-xl"}"'
    )


def loras() -> dict[str, Path]:
    """Every .safetensors file in models/loras by its relative name."""
    names = (name for name in folder_paths.get_filename_list("loras") if name.endswith(".safetensors"))
    found = {name: folder_paths.get_full_path("loras", name) for name in names}
    return {name: Path(path) for name, path in found.items() if path is not None}


def lora_file(name: object) -> Path:
    """The file of a LoRA by its name; no path is made from what a workflow says. Raises CheckpointError."""
    found = loras()
    if isinstance(name, str) and name in found:
        return found[name]
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
    """Keeps what was learned of checkpoints' files beside the caches, so that the next server reads none of them."""
    TABLE.keep_in(Path(folder_paths.get_user_directory()) / "__i2v_tensorrt" / "digests.json")


def save_place(
    prefix: object, suffix: str, width: int, height: int, *, temporary: bool = False
) -> AbstractContextManager[SavePlace]:
    """A free name in ComfyUI's output (or temp) folder from a prefix; see `output_path.free_place`."""
    root = folder_paths.get_temp_directory() if temporary else folder_paths.get_output_directory()
    return free_place(Path(root), prefix, suffix, width, height)


def digest_of_output(subfolder: str, filename: str) -> str | None:
    """The SHA-256 of a file in ComfyUI's output folder, or None; see `output_path.digest_below`."""
    return digest_below(Path(folder_paths.get_output_directory()), subfolder, filename)


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


# Memory


class HostResidency:
    """Residency by ComfyUI's memory manager."""

    def __init__(self) -> None:
        self._patchers: list[RunnerPatcher] = []

    def hold(self, runner: Runner, scratch_bytes: int, beside: Sequence[ModelPatcher] = ()) -> str | None:
        """Makes room for the runner and its scratch memory, evicting what ComfyUI can spare, and loads it.

        `beside` are models that are in use and stay. Nothing is asked of anybody where the runner was the last that
        was loaded, for no less scratch memory.
        """
        patcher = patcher_of(runner)
        if patcher not in self._patchers:
            self._patchers.append(patcher)
        models = [*beside, patcher]
        if runner.is_loaded and scratch_bytes <= patcher.scratch_bytes and were_last_loaded(models):
            return None
        needed_bytes = scratch_bytes + (0 if runner.is_loaded else patcher.model_size())
        told = [self.relieve(needed_bytes, encoders=True, keep=runner)]
        there, name = self._loaded(), runner.spec.network.component
        room_bytes = self.room_bytes()
        if room_bytes is not None and room_bytes < needed_bytes:
            told.append(f"Memory may not do for {name}, whose weights are held whole and not streamed.")
        memory.load_models_gpu(models, memory_required=scratch_bytes)
        patcher.scratch_bytes = scratch_bytes
        if not runner.is_loaded:  # its weights were moved by a runner that shares them
            patcher.load()
        gone = [name for name in there if name not in self._loaded()]
        told += [f"Made room for {name}: {', '.join(gone)} left the device."] if gone else []
        return " ".join(filter(None, told)) or None

    def relieve(self, needed_bytes: int, *, encoders: bool, keep: Runner | None = None) -> str | None:
        """The pack's own: what it keeps in memory, runners of other models, then this one's encoders."""

        def idle_encoders() -> str:
            return self._let_go(lambda runner, mine: mine and is_encoder(runner) and runner is not keep)

        concessions: list[Concession] = [_forget_kept, lambda: self._let_go(lambda _, mine: not mine)]
        concessions += [idle_encoders, empty_cache] if encoders else [empty_cache]
        return concede(memory_of(device()), needed_bytes, concessions)

    def _let_go(self, chosen: Callable[[Runner, bool], bool]) -> str:
        """Unloads the pack's runners that are chosen, each shown with whether it is of this model; their names."""
        mine = [patcher.runner for patcher in self._patchers]
        return ", ".join(unload(lambda runner: chosen(runner, runner in mine)))

    def spare_bytes(self) -> int | None:
        return None if memory.directml_enabled else memory_of(device()).spare_bytes()

    def room_bytes(self) -> int | None:
        """What is free, and what the models take that ComfyUI could unload."""
        return None if memory.directml_enabled else free_bytes() + loaded_bytes(device())

    def host_bytes(self) -> int:
        return int(memory.get_free_memory(torch.device("cpu")))

    def _loaded(self) -> list[str]:
        runners = [patcher.runner for patcher in self._patchers]
        return [runner.spec.network.component for runner in runners if runner is not None and runner.is_loaded]

    def clear(self) -> None:
        """Unloads every model on a GPU, where the child that builds needs the room."""
        if device().type != "cpu":
            free_models()


def _forget_kept() -> str:
    """Lets go of what the caches hold in memory, where that is the memory in question."""
    caches = (conditioning_cache(), result_cache()) if device().type == "cpu" else ()
    return "what the caches keep in memory" if sum([cache.clear_memory() for cache in caches]) else ""


def free_models() -> None:
    """Takes every model off the device, ComfyUI's own too, for a build or a measurement that wants it free."""
    memory.unload_all_models()
    empty_cache()


def device() -> torch.device:
    """The device that ComfyUI computes on, with its index."""
    return memory.get_torch_device()


def fitting_precision(name: str) -> str:
    """The precision of that name; for `auto` fp32 on GPUs that ComfyUI knows to be wrong or slow in fp16."""
    is_unfit = name == AUTO and device().type == "cuda" and not memory.should_use_fp16(device())
    return "fp32" if is_unfit else name


def check_backend(name: Any) -> None:
    """Raises an I2VError, with the line to install it, when the backend does not serve `device()`."""
    choose_backend(str(name), device())


def free_bytes() -> int:
    """Memory that a computation on `device()` could take now."""
    return int(memory.get_free_memory(device()))


# What the user sees


class Progress:
    """A node's progress bar and line of text; every call lets an interruption through."""

    def __init__(self, node_id: str | None, total: int) -> None:
        self._node_id = node_id
        self._bar = comfy.utils.ProgressBar(total)

    def step(self, done: int, total: int, preview: Any = None) -> None:
        """Moves the bar; `preview` as `latent_preview` gives it."""
        memory.throw_exception_if_processing_interrupted()
        self._bar.update_absolute(done, total, preview)

    def say(self, text: str) -> None:
        """Writes a line on the node while it runs and after."""
        memory.throw_exception_if_processing_interrupted()
        say(self._node_id, text)


def tell_build(stage: str, done: float) -> None:
    """A report of a build on whichever node needed it; lets an interruption through."""
    memory.throw_exception_if_processing_interrupted()
    context = get_executing_context()
    say(None if context is None else context.node_id, f"building {stage} {done:.0%}")


def say(node_id: str | None, text: str) -> None:
    """Shows a text on a node, where the page can."""
    if node_id is not None and hasattr(PromptServer.instance, "send_progress_text"):
        PromptServer.instance.send_progress_text(text, node_id)


def previewer(model: VideoModel, num_frames: int, fps: float) -> Callable[[torch.Tensor], Any]:
    """Makes a preview of latents [frames, channels, h, w] by the user's preview method: some frames on one sheet.

    The page is told once how the sheet is divided and how long the clip plays, so that it can show it moving;
    one that does not understand shows the sheet as it is.
    """
    space = model.latent
    known = getattr(comfy.latent_formats, space.format, None)  # an older host may not know the space
    made = None if known is None else latent_preview.get_previewer(device(), _coloured(known(), model))
    sheet = Sheet.of_clip(space.frames(num_frames), num_frames / fps)
    context, server = get_executing_context(), PromptServer.instance
    if made is not None and context is not None:
        told = {"prompt_id": context.prompt_id, "node": context.node_id, **dataclasses.asdict(sheet)}
        server.send_sync("i2v_tensorrt.sheet", told, server.client_id)

    def preview(latents: torch.Tensor) -> Any:
        if made is None:
            return None
        laid = sheet.lay(latents)
        return made.decode_latent_to_preview_image("JPEG", laid[:, :, None] if space.video else laid)

    return preview


def _coloured(form: Any, model: VideoModel) -> Any:
    """ComfyUI's latent format, with the colours that the checkpoint says that its latents have."""
    rows = latent_rgb(model.checkpoint.folder, model.latent.channels)
    if rows is not None:
        form.latent_rgb_factors, form.latent_rgb_factors_bias = rows[:-1], rows[-1]
        form.taesd_decoder_name = None  # it decodes the latents of the published VAE
    return form


@contextmanager
def sentences() -> Iterator[None]:
    """Lets the pack's errors out as their sentence alone, without the chain of causes behind them."""
    try:
        yield
    except I2VError as error:
        log.debug("refused", exc_info=True)
        raise type(error)(str(error)) from None


def schema(**fields: Any) -> io.Schema:
    """io.Schema with those fields that this ComfyUI knows; older ones lack some that only decorate."""
    known = {field.name for field in dataclasses.fields(io.Schema)}
    return io.Schema(**{name: value for name, value in fields.items() if name in known})


def text_ui(lines: list[str], more: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """What a node hands to the page when it is done: its lines of text, and what else it shows."""
    return {"text": ("\n".join(lines),), **(more or {})}


def table_ui(table: Table, lines: list[str]) -> dict[str, Any]:
    """As `text_ui`, with a table that the page shows on the node."""
    return text_ui(lines, {"table": table.cells})

"""A node's interface to the user: progress with interruption, previews, messages, schemas."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import comfy.latent_formats
import comfy.model_management as memory
import comfy.utils
import latent_preview
import torch
from comfy_api.latest import io
from comfy_execution.utils import get_executing_context
from server import PromptServer

from ...common.errors import I2VError
from ...pipeline.models.base import VideoModel
from ...pipeline.models.latent_rgb import latent_rgb
from ...runtime.tools.table import Table
from .memory import device
from .preview_grid import Sheet

log = logging.getLogger(__name__)


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

    The page receives the sheet's layout and the clip's duration once, so that it can play the frames;
    a page that does not understand them shows the sheet as it is.
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
    """ComfyUI's latent format, with the colours that the checkpoint gives for its latents."""
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
    """Output of a finished node for the page: its lines of text, and further entries."""
    return {"text": ("\n".join(lines),), **(more or {})}


def table_ui(table: Table, lines: list[str]) -> dict[str, Any]:
    """As `text_ui`, with a table that the page shows on the node."""
    return text_ui(lines, {"table": table.cells})

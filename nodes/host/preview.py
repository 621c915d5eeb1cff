"""Previews of a clip while it is sampled, by ComfyUI's own previewer or whatever a pack has put in its place."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Any

import comfy.latent_formats
import comfy.model_management as memory
import latent_preview
import torch
from comfy_execution.utils import get_executing_context
from PIL import Image
from server import PromptServer

from ...pipeline.models.base import VideoModel
from ...pipeline.models.latent_rgb import latent_rgb
from .memory import device
from .preview_grid import Sheet
from .ui import shown_node

log = logging.getLogger(__name__)

Preview = tuple[str, Image.Image, Any]
"""What ComfyUI's progress bar takes: the format, the picture and its greatest side."""


class Previewer:
    """Makes previews of latents [frames, channels, h, w] until one fails: then none, and one warning.

    A preview is worth no clip. `make` gives None for latents that are to have no preview.
    """

    def __init__(self, make: Callable[[torch.Tensor], Any]) -> None:
        self._make: Callable[[torch.Tensor], Any] | None = make

    def __call__(self, latents: torch.Tensor) -> Preview | None:
        if self._make is None:
            return None
        try:
            return _checked(self._make(latents))
        except memory.InterruptProcessingException:
            raise
        except Exception as error:
            self._make = None
            log.warning("The clip is sampled without previews, because one failed: %r", error)
            return None


def previewer(model: VideoModel, num_frames: int, fps: float, workflow: object) -> Previewer:
    """Previews by the user's preview method: some frames on one sheet.

    The page of whoever queued the clip receives the sheet's layout and the clip's duration once, so that it can play
    the frames; a page that does not understand them shows the sheet as it is. `workflow` is the request's, whose id
    tells pages with several apart.
    """
    sheet = Sheet.of_clip(model.latent.frames(num_frames), num_frames / fps)
    made: list[Any] = []

    def make(latents: torch.Tensor) -> Any:
        if not made:
            made.append(_of_comfyui(model))
        if made[0] is None:
            return None
        laid = sheet.lay(latents)
        return made[0].decode_latent_to_preview_image("JPEG", laid[:, :, None] if model.latent.video else laid)

    _announce(sheet, workflow)
    return Previewer(make)


def workflow_of(extra_pnginfo: object) -> object:
    """The workflow that a page sends along with its prompt; None from programs."""
    return extra_pnginfo.get("workflow") if isinstance(extra_pnginfo, Mapping) else None


def _announce(sheet: Sheet, workflow: object) -> None:
    context, server = get_executing_context(), PromptServer.instance
    if context is None or server.client_id is None:  # without a name all pages would hear it
        return
    told = {"prompt_id": context.prompt_id, "node": shown_node(context.node_id), **dataclasses.asdict(sheet)}
    told["workflow"] = workflow.get("id") if isinstance(workflow, Mapping) else None
    server.send_sync("i2v_tensorrt.sheet", told, server.client_id)


def _of_comfyui(model: VideoModel) -> Any:
    """ComfyUI's previewer for the model's latents; None where it has none."""
    known = getattr(comfy.latent_formats, model.latent.format, None)  # an older host may not know the space
    return None if known is None else latent_preview.get_previewer(device(), _coloured(known(), model))


def _coloured(form: Any, model: VideoModel) -> Any:
    """ComfyUI's latent format, with the colours that the checkpoint gives for its latents."""
    rows = latent_rgb(model.checkpoint.folder, model.latent.channels)
    if rows is not None:
        form.latent_rgb_factors, form.latent_rgb_factors_bias = rows[:-1], rows[-1]
        form.taesd_decoder_name = None  # it decodes the latents of the published VAE
    return form


def _checked(preview: Any) -> Preview | None:
    """The preview as ComfyUI's server can send it; raises TypeError for any other, at which its own thread would."""
    if preview is None:
        return None
    if not isinstance(preview, tuple) or len(preview) != 3 or not isinstance(preview[1], Image.Image):
        raise TypeError(f"expected a preview as (format, picture, greatest side), found {preview!r:.80}")
    return preview

"""I2V Upscale Video."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from comfy_api.latest import Input, io

from ..common.errors import InputError
from ..pipeline.filters.upscaling import TILE
from ..runtime.filters.upscale import SMALLEST_TILE, UPSCALER, UpscalerNetworks, fitting_tile, upscaling
from .frames import engines_of, fps_input, frames_input
from .host import memory, ui
from .host.upscale_model import precision_of, upscaler
from .host.video import Footage, collected, footage
from .inputs import CATEGORY, advanced, backend_input, on_missing_input, sockets, verdict

MODEL, FACTOR, LONG_SIDE = "model", "factor", "longest side"
MOST_PIXELS = 16384
"""Pixels of a side of the new frames."""


def tile_input() -> io.Int.Input:
    """The side of the tiles that an engine takes."""
    return io.Int.Input(
        "tile",
        default=TILE,
        min=SMALLEST_TILE,
        max=2048,
        step=SMALLEST_TILE,
        optional=True,
        tooltip="Pixels of a tile's side, less for smaller frames. Smaller takes less memory; each has an engine of "
        "its own.",
    )


class UpscaleVideo(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_UpscaleVideo",
            display_name="I2V Upscale Video",
            category=CATEGORY,
            description="Enlarges frames with an upscale model, in tiles without seams. Tiles of several frames go "
            "through an engine at once, and a VIDEO is read and written frame by frame.",
            search_aliases=["upscale", "esrgan", "super resolution", "enlarge", "4x", "hires"],
            inputs=[
                frames_input(),
                io.UpscaleModel.Input("upscale_model", tooltip="From Load Upscale Model."),
                io.Combo.Input(
                    "target",
                    options=[MODEL, FACTOR, LONG_SIDE],
                    default=MODEL,
                    tooltip="Size of the new frames. model: what the model gives. factor: value times the old size. "
                    "longest side: value in pixels.",
                ),
                io.Float.Input("value", default=2.0, min=0.1, max=float(MOST_PIXELS), step=0.01, tooltip="See target."),
                fps_input(),
                on_missing_input(),
                backend_input(),
                advanced(tile_input()),
            ],
            outputs=[
                io.Image.Output(display_name="frames", tooltip="The new frames of an IMAGE; none of a VIDEO."),
                io.Video.Output(display_name="video", tooltip="The new frames with the sound, for any VIDEO node."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, backend: Any = None) -> bool | str:
        return True if backend is None else verdict(lambda: memory.check_backend(backend))

    @classmethod
    @sockets(frames=(torch.Tensor, Input.Video), upscale_model=object)
    def execute(
        cls,
        frames: Any,
        upscale_model: Any,
        target: str,
        value: float,
        fps: float,
        on_missing: str,
        backend: str,
        tile: int = TILE,
    ) -> io.NodeOutput:
        started = time.monotonic()
        with ui.sentences():
            source = footage(frames, fps)
            networks = upscaler(upscale_model, fitting_tile(tile, source.height, source.width))
            owner, precision = upscale_model.model, precision_of(upscale_model)
            engines = engines_of(networks, precision, backend, on_missing, owner=owner)
            size = _size(source, engines.model, target, value)
            progress = ui.Progress(cls.hidden.unique_id, source.num_frames)
            progress.say("upscale: loading")

            run = upscaling(engines, size=size)
            height, width = size
            large = replace(source, frames=run(source.frames), height=height, width=width)
            made, video = collected(large, partial(progress.count, "upscale: frame"))
        tiles = f"{run.report.tiles} tiles, {run.report.batch} at once, {time.monotonic() - started:.2f} s"
        sizes = f"{source.width}x{source.height} to {width}x{height}"
        lines = [f"{sizes}: {tiles}", engines.describe(UPSCALER), *engines.take_notes()]
        progress.say("\n".join(lines))
        return io.NodeOutput(made, video, ui=ui.text_ui(lines))


def _size(source: Footage, model: UpscalerNetworks, target: str, value: float) -> tuple[int, int]:
    """Height and width of the new frames; raises InputError for a target that makes no sense."""
    longest = max(source.height, source.width)
    factors = {MODEL: float(model.scale), FACTOR: value, LONG_SIDE: value / longest}
    if target not in factors:
        raise InputError(f"Expected a target of {', '.join(factors)}, found {target!r:.40}.")
    factor = factors[target]
    if not 1 <= factor * longest <= MOST_PIXELS:
        raise InputError(f"Expected new frames of 1 to {MOST_PIXELS} pixels a side, found {factor * longest:.0f}.")
    height, width = (max(round(side * factor), 1) for side in (source.height, source.width))
    return height, width

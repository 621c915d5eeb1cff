"""I2V VAE Decode."""

from __future__ import annotations

import time
from typing import Any

import torch
from comfy_api.latest import io

from ..engine_builder.errors import InputError
from ..jobs.clip import decode_clip
from ..jobs.engines import EngineSet
from ..pipeline.decode import chunk_size
from . import host
from .types import CATEGORY, Model, sockets

MAX_CHUNK = 64


class VAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="I2VTRT_VAEDecode",
            display_name="I2V VAE Decode",
            category=CATEGORY,
            description="Turns latents into frames, as many at once as fit into the memory that is free.",
            search_aliases=["vae decode", "latent to image", "decode frames"],
            inputs=[
                Model.Input("model", tooltip="From the Model Loader or the Engine Loader."),
                io.Latent.Input("latents", tooltip="From the I2V DDIM Sampler, one item a frame."),
                io.Int.Input(
                    "chunk",
                    default=0,
                    min=0,
                    max=MAX_CHUNK,
                    optional=True,
                    tooltip="Frames at once; 0 adapts to memory.",
                ),
            ],
            outputs=[io.Image.Output(display_name="frames", tooltip="One image a frame, for any IMAGE node.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @sockets(model=EngineSet, latents=dict)
    def execute(cls, model: EngineSet, latents: Any, chunk: int = 0) -> io.NodeOutput:
        with host.sentences():
            samples = latents.get("samples")
            if not isinstance(samples, torch.Tensor) or samples.ndim != 4:
                raise InputError("Expected latents as [frames, channels, height, width], found another kind.")
            count, _, height, width = samples.shape
            factor = model.model.latent_factor
            progress, started = host.Progress(cls.hidden.unique_id, count), time.monotonic()

            ends: list[int] = []

            def on_chunk(done: int, total: int) -> None:
                ends.append(done)
                progress.step(done, total)
                progress.say(f"decode: frame {done} of {total}")

            size = min(chunk or chunk_size(host.free_bytes(), height * factor, width * factor, count), MAX_CHUNK)
            progress.say("decode: loading")
            frames = decode_clip(model, samples, size, on_chunk)
        lines = [
            f"decoded in {time.monotonic() - started:.2f} s",
            model.describe("vae_decoder"),
            *model.take_notes(),
        ]
        if model.model.decodes_over_time and len(ends) > 1:
            lines.append(f"Decoded in {len(ends)} parts, between which colours may jump: try a chunk of {count}.")
        if not chunk and size < count:
            lines.insert(1, f"{size} of {count} frames at once, for the memory that is free")
        progress.say("\n".join(lines))
        return io.NodeOutput(frames, ui=host.text_ui(lines))

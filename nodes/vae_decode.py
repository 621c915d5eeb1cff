"""I2V VAE Decode."""

from __future__ import annotations

import time
from typing import Any

from comfy_api.latest import io

from ..runtime.clip import decode_clip, fitting_chunk, latents_size
from ..runtime.clip_plan import plan_clip
from ..runtime.engines.engine_set import EngineSet
from .host import ui
from .host.peak_memory import PeakMemory
from .inputs import CATEGORY, Model, decoder_inputs_of, samples_of, sockets

MAX_CHUNK = 64


class VAEDecode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_VAEDecode",
            display_name="I2V VAE Decode",
            category=CATEGORY,
            description="Turns latents into frames, as many at once as fit into the memory that is free.",
            search_aliases=["vae decode", "latent to image", "decode frames"],
            inputs=[
                Model.Input("model", tooltip="From the Model Loader or the Engine Loader."),
                io.Latent.Input("latents", tooltip="From the I2V DDIM Sampler."),
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
        with ui.sentences():
            samples, space = samples_of(latents), model.model.latent
            plan = plan_clip(model, latents_size(model.model, samples))
            count = plan.size.num_frames
            progress, started = ui.Progress(cls.hidden.unique_id, count), time.monotonic()
            peak = PeakMemory(model.device)

            ends: list[int] = []

            def on_chunk(done: int, total: int) -> None:
                ends.append(done)
                progress.count("decode: frame", done, total)

            size = min(chunk or fitting_chunk(plan), MAX_CHUNK)
            progress.say("decode: loading")
            frames = decode_clip(plan, samples, size, on_chunk, decoder_inputs_of(latents))
        lines = [
            f"decoded in {time.monotonic() - started:.2f} s",
            *peak.lines(),
            model.describe(model.model.decoder_component),
            *model.take_notes(),
        ]
        if model.model.decodes_over_time and len(ends) > 1:
            lines.append(f"Decoded in {len(ends)} parts, between which colours may jump: try a chunk of {count}.")
        if not chunk and size < count and space.time_factor == 1:
            lines.insert(1, f"{size} of {count} frames at once, for the memory that is free")
        progress.say("\n".join(lines))
        return io.NodeOutput(frames, ui=ui.text_ui(lines))

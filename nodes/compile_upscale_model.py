"""I2V Compile Upscale Model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..pipeline.filters.upscaling import TILE
from .frames import engines_of
from .host import memory, ui
from .host.compiled_upscaler import CompiledUpscaler
from .host.upscale_model import precision_of, upscaler
from .inputs import CATEGORY, advanced, backend_input, on_missing_input, sockets, verdict
from .upscale_video import tile_input


class CompileUpscaleModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_CompileUpscaleModel",
            display_name="I2V Compile Upscale Model",
            category=CATEGORY,
            description="Lets an upscale model run through an engine, in every node that takes one.",
            search_aliases=["upscale", "esrgan", "tensorrt", "accelerate", "torch compile"],
            inputs=[
                io.UpscaleModel.Input("upscale_model", tooltip="From Load Upscale Model."),
                on_missing_input(),
                backend_input(),
                advanced(tile_input()),
            ],
            outputs=[
                io.UpscaleModel.Output(display_name="upscale_model", tooltip="The same model, through an engine."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, backend: Any = None) -> bool | str:
        return True if backend is None else verdict(lambda: memory.check_backend(backend))

    @classmethod
    @sockets(upscale_model=object)
    def execute(cls, upscale_model: Any, on_missing: str, backend: str, tile: int = TILE) -> io.NodeOutput:
        with ui.sentences():
            engines = engines_of(upscaler(upscale_model, tile), precision_of(upscale_model), backend, on_missing)
            status = engines.summary()
        ui.say(cls.hidden.unique_id, status)
        return io.NodeOutput(CompiledUpscaler(upscale_model, engines, cls.hidden.unique_id), ui=ui.text_ui([status]))

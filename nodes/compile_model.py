"""I2V Compile Model."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..runtime.engines.policy import EnginePolicy
from .host import memory, ui
from .host import model as host_model
from .inputs import CATEGORY, backend_input, on_missing_input, shape_policy_input, sockets, verdict


class CompileModel(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_CompileModel",
            display_name="I2V Compile Model",
            category=CATEGORY,
            description="Lets a MODEL of ComfyUI's own loaders run through engines, for KSampler and everything else "
            "that takes a MODEL. What an engine cannot honour runs as it is, and the node says so.",
            search_aliases=["tensorrt", "torch compile", "accelerate", "wan", "svd", "ksampler", "inductor"],
            inputs=[
                io.Model.Input("model", tooltip="From a loader, such as Load Diffusion Model, or a LoRA's."),
                on_missing_input(),
                shape_policy_input("exact", ("range", "exact")),
                backend_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The same model, through engines."),
                io.String.Output(
                    display_name="status", tooltip="What to expect; what each run came to stands on the node."
                ),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def validate_inputs(cls, backend: Any = None) -> bool | str:
        return True if backend is None else verdict(lambda: memory.check_backend(backend))

    @classmethod
    @sockets(model=host_model.ModelPatcher)
    def execute(cls, model: host_model.ModelPatcher, on_missing: str, shape_policy: str, backend: str) -> io.NodeOutput:
        with ui.sentences():
            policy = EnginePolicy(backend=backend, shapes=shape_policy, on_missing=on_missing)
            compiled = host_model.CompiledModel(cls.hidden.unique_id, policy)
            status = compiled.forecast(model)
            clone = compiled.attached_to(model)
        ui.say(cls.hidden.unique_id, status)
        return io.NodeOutput(clone, status, ui=ui.text_ui([status]))

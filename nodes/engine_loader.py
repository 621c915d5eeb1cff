"""Engine Loader."""

from __future__ import annotations

from comfy_api.latest import io

from ..engine_builder.backends.registry import AUTO
from ..jobs.engines import EngineSet
from ..jobs.policy import MISS_POLICIES, SHAPE_POLICIES, EnginePolicy
from . import host
from .types import BACKEND_NAMES, BACKEND_TOOLTIP, CATEGORY, PRECISION_NAMES, Model, sockets


class EngineLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return host.schema(
            node_id="I2VTRT_EngineLoader",
            display_name="I2V Engine Loader",
            category=CATEGORY,
            description="Lets a model run through engines compiled for this machine. Each is looked up when a size "
            "is asked for; a missing one is built, replaced by eager PyTorch, or an error.",
            search_aliases=["tensorrt", "load engine", "accelerate", "compile", "onnxruntime"],
            inputs=[
                Model.Input("model", tooltip="From the I2V Model Loader."),
                io.Combo.Input(
                    "on_missing",
                    options=list(MISS_POLICIES),
                    default=AUTO,
                    tooltip="No engine fits. auto: build one on a GPU; on a CPU, where it saves little, run eager "
                    "PyTorch. build: one now. eager: PyTorch with a warning. stop: an error.",
                ),
                io.Combo.Input(
                    "shape_policy",
                    options=list(SHAPE_POLICIES),
                    default="range",
                    tooltip="For engines built here. range: one for every size. exact: for the size asked for alone, "
                    "faster and quicker to build.",
                ),
                io.Combo.Input(
                    "precision", options=PRECISION_NAMES, default="auto", tooltip="auto: fp16 on a CUDA GPU, else fp32."
                ),
                io.Combo.Input("backend", options=BACKEND_NAMES, default="auto", tooltip=BACKEND_TOOLTIP),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The same model, through engines.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @sockets(model=EngineSet)
    def execute(
        cls, model: EngineSet, on_missing: str, shape_policy: str, precision: str, backend: str
    ) -> io.NodeOutput:
        with host.sentences():
            policy = EnginePolicy(backend=backend, precision=precision, shapes=shape_policy, on_missing=on_missing)
            engines = EngineSet(
                model.model, host.engine_store(), policy, host.device(), host.HostResidency(), host.tell_build
            )
            text = engines.summary()
        host.say(cls.hidden.unique_id, text)
        return io.NodeOutput(engines, ui=host.text_ui([text]))

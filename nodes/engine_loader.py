"""Engine Loader."""

from __future__ import annotations

from comfy_api.latest import io

from ..engine_builder.backends.registry import AUTO
from ..runtime.devices.second_gpu import choose_second, visible_gpus
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .host import memory, ui
from .host.engine_sets import EngineMaker
from .host.idle import idle_builds
from .inputs import (
    CATEGORY,
    Model,
    backend_input,
    devices_input,
    on_missing_input,
    precision_input,
    presets_input,
    presets_of,
    shape_policy_input,
    sockets,
    weights_input,
)


class EngineLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_EngineLoader",
            display_name="I2V Engine Loader",
            category=CATEGORY,
            description="Lets a model run through engines compiled for this machine. Each is looked up when a size "
            "is asked for; a missing one is built, replaced by eager PyTorch, or an error.",
            search_aliases=["tensorrt", "load engine", "accelerate", "compile", "onnxruntime"],
            inputs=[
                Model.Input("model", tooltip="From the I2V Model Loader."),
                on_missing_input(),
                shape_policy_input(),
                precision_input(),
                backend_input(),
                presets_input(),
                weights_input(),
                devices_input(),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The same model, through engines.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @sockets(model=EngineSet)
    def execute(
        cls,
        model: EngineSet,
        on_missing: str,
        shape_policy: str,
        precision: str,
        backend: str,
        presets: str = "",
        weights: str = AUTO,
        devices: str = AUTO,
    ) -> io.NodeOutput:
        with ui.sentences():
            sizes = presets_of(shape_policy, presets)
            precision = memory.fitting_precision(precision)
            policy = EnginePolicy(backend, precision, shape_policy, on_missing, presets=sizes, weights=weights)
            second = choose_second(devices, memory.device(), visible_gpus())
            made = EngineMaker(policy, ui.tell_build, idle_builds()).of(model.model, second.device)
            engines = made.with_preset(model.preset)
            text = "\n".join(filter(None, [engines.summary(), engines.devices_line, second.reason]))
        ui.say(cls.hidden.unique_id, text)
        return io.NodeOutput(engines, ui=ui.text_ui([text]))

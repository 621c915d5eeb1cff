"""Engine Builder."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..common.errors import InputError
from ..engine_builder.backends.registry import AUTO
from ..engine_builder.backends.tensorrt.library import RTX_ARCHS
from ..pipeline.conditioning import MAX_FRAMES, check_fields
from ..pipeline.media.image import picture_from_tensor
from ..runtime.calibration import MOST_CLIPS, CalibrationData
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from ..runtime.engines.presets import parse_presets
from ..runtime.prebuild import ALL, Prebuild, component_names, prebuild
from .host import folders, memory, ui
from .inputs import (
    CATEGORY,
    Model,
    backend_input,
    precision_input,
    presets_input,
    presets_of,
    shape_policy_input,
    sockets,
    verdict,
    weights_input,
)
from .limits import side_input

HERE = "this machine"


class EngineBuilder(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_EngineBuilder",
            display_name="I2V Engine Builder",
            category=CATEGORY,
            description="Compiles a model's networks for this machine ahead of time and keeps them in "
            "models/i2v_engines. Each is compared with eager PyTorch before it may be used.",
            search_aliases=["tensorrt", "compile", "onnx", "build engine", "convert"],
            inputs=[
                Model.Input("model", tooltip="From the I2V Model Loader."),
                io.Combo.Input(
                    "component", options=[ALL, *component_names()], default=ALL, tooltip="Which network to compile."
                ),
                shape_policy_input(),
                side_input("width", 512),
                side_input("height", 512),
                io.Int.Input("num_frames", default=16, min=1, max=MAX_FRAMES, tooltip="Frames in a clip."),
                precision_input(),
                backend_input(),
                io.Boolean.Input("force", default=False, tooltip="Build again even if the engine is there."),
                io.Combo.Input(
                    "target",
                    options=[HERE, *RTX_ARCHS],
                    default=HERE,
                    optional=True,
                    tooltip="Another GPU's architecture builds a TensorRT-RTX engine for it, even without a GPU here; "
                    "it is checked when it first meets that GPU.",
                ),
                presets_input(),
                io.Image.Input(
                    "pictures",
                    optional=True,
                    tooltip="For int8 and fp8: a few of the pictures that you animate, as a batch. Short clips of them "
                    "say how large the denoiser's numbers get.",
                ),
                io.String.Input(
                    "prompts",
                    optional=True,
                    force_input=True,
                    tooltip="What the pictures are made to do for that, a prompt a line.",
                ),
                weights_input(),
            ],
            outputs=[
                Model.Output(display_name="model", tooltip="The same model, so that an Engine Loader can follow."),
                io.String.Output(display_name="report", tooltip="What was built, how long it took, how well it fits."),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, presets: Any = None) -> bool | str:
        return verdict(lambda: parse_presets(str(presets))) if presets else True

    @classmethod
    @sockets(model=EngineSet)
    def execute(
        cls,
        model: EngineSet,
        component: str,
        shape_policy: str,
        width: int,
        height: int,
        num_frames: int,
        precision: str,
        backend: str,
        force: bool,
        target: str = HERE,
        presets: str = "",
        pictures: torch.Tensor | None = None,
        prompts: str | None = None,
        weights: str = AUTO,
    ) -> io.NodeOutput:
        progress = ui.Progress(cls.hidden.unique_id, 100)

        def report(stage: str, done: float) -> None:
            progress.step(round(100 * done), 100)
            progress.say(f"building {stage}")

        with ui.sentences():
            check_fields({"width": width, "height": height, "num_frames": num_frames})
            names = model.model.engine_components if component == ALL else (component,)
            arch = None if target == HERE else target
            if arch is not None and precision == AUTO:
                precision = "fp16"
            sizes = presets_of(shape_policy, presets)
            policy = EnginePolicy(backend, precision, shape_policy, presets=sizes, weights=weights)
            engines = EngineSet(
                model.model, folders.engine_store(), policy, memory.device(), memory.HostMemoryManager()
            )
            calibration_data = None if pictures is None else _calibration_data(pictures, prompts or "")
            job = Prebuild(tuple(names), width, height, num_frames, force, arch, calibration_data)
            lines = prebuild(engines, job, report)
        progress.say("\n".join(lines))
        return io.NodeOutput(model, "\n".join(lines), ui=ui.text_ui(lines))


def _calibration_data(pictures: Any, prompts: Any) -> CalibrationData:
    """Calibration data from the sockets; raises InputError for values that are no batch of pictures, or no text."""
    if not isinstance(pictures, torch.Tensor) or pictures.ndim != 4:
        raise InputError(f"Expected pictures over a link from a node that gives them, found {type(pictures).__name__}.")
    if not isinstance(prompts, str):
        raise InputError(f"Expected prompts as a text with one a line, found a {type(prompts).__name__}.")
    lines = tuple(line.strip() for line in prompts.splitlines() if line.strip())
    return CalibrationData(tuple(picture_from_tensor(each) for each in pictures[:MOST_CLIPS]), lines or ("",))

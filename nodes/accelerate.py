"""I2V Accelerate."""

from __future__ import annotations

from dataclasses import replace

from comfy_api.latest import io

from ..pipeline.acceleration.presets import EXACT_NAME, PRESET_NAMES, Preset, changed, preset_of
from ..pipeline.acceleration.settings import (
    MAX_INTERVAL,
    Acceleration,
    ChangeCache,
    GuidanceGate,
    MagnitudeCache,
    Solver,
)
from ..pipeline.denoising.schedulers import MAX_STEPS
from ..runtime.acceleration import find_magnitudes
from ..runtime.engines.engine_set import EngineSet
from .host import ui
from .inputs import CATEGORY, Model, advanced, sockets

BY_PRESET, OFF, BY_MAGNITUDES, BY_CHANGE = STEP_CACHES = ("preset", "off", "magnitudes", "change")
PRESETS_OWN = -1.0
NO_RATIOS = "No ratios of this model are kept: run.py calibrate-cache measures them. No step is left out."


class Accelerate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_Accelerate",
            display_name="I2V Accelerate",
            category=CATEGORY,
            description="Samples clips with fewer or cheaper calls of the network, at a loss that is named. exact "
            "makes every call; the others are faster in this order, and each says what was measured of its quality.",
            search_aliases=["fast", "step cache", "magcache", "easycache", "deepcache", "cfg gate", "turbo", "speed"],
            inputs=[
                Model.Input("model", tooltip="From the I2V Model Loader, the I2V Engine Loader or an I2V LoRA."),
                io.Combo.Input(
                    "preset",
                    options=list(PRESET_NAMES),
                    default=PRESET_NAMES[1],
                    tooltip="exact: nothing is left out. near: hardly to be told from it. fast: small things differ. "
                    "real time: the same motion, other details.",
                ),
                advanced(
                    io.Int.Input(
                        "steps",
                        default=0,
                        min=0,
                        max=MAX_STEPS,
                        optional=True,
                        tooltip="Most steps of a clip, whatever the sampler is asked for. 0 leaves it to the preset.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "guidance_end",
                        default=PRESETS_OWN,
                        min=PRESETS_OWN,
                        max=1.0,
                        step=0.05,
                        optional=True,
                        tooltip="Share of the steps with a guidance of their own: later ones run one branch and reuse "
                        "the last difference of both. 1 runs both at every step, -1 leaves it to the preset.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "step_cache",
                        options=list(STEP_CACHES),
                        default=BY_PRESET,
                        optional=True,
                        tooltip="Steps left out, whose result is made from the last call. magnitudes: by ratios that "
                        "run.py calibrate-cache has measured. change: by how much the latents change, read at "
                        "every step.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "threshold",
                        default=0.05,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        optional=True,
                        tooltip="Of the step cache magnitudes or change: how much error is let through before a call.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "deep_interval",
                        default=0,
                        min=0,
                        max=MAX_INTERVAL,
                        optional=True,
                        tooltip="I2VGen-XL, Stable Video Diffusion: of so many calls one runs the whole network, the "
                        "others its shallow part, by engines of their own. 1 is off, 0 leaves it to the preset.",
                    )
                ),
            ],
            outputs=[Model.Output(display_name="model", tooltip="The same model, for the I2V DDIM Sampler.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @sockets(model=EngineSet)
    def execute(
        cls,
        model: EngineSet,
        preset: str = EXACT_NAME,
        steps: int = 0,
        guidance_end: float = PRESETS_OWN,
        step_cache: str = BY_PRESET,
        threshold: float = 0.05,
        deep_interval: int = 0,
    ) -> io.NodeOutput:
        with ui.sentences():
            base = preset_of(preset, model.model)
            acceleration = _with_steps(base.acceleration, steps)
            if guidance_end != PRESETS_OWN:
                acceleration = replace(acceleration, guidance=GuidanceGate(end=guidance_end))
            acceleration = replace(acceleration, step_cache=_step_cache(base, step_cache, threshold))
            if deep_interval:
                acceleration = replace(acceleration, deep_interval=deep_interval)
            accelerated = model.with_preset(changed(base, acceleration, model.model))
            lines = _lines(accelerated)
        ui.say(cls.hidden.unique_id, "\n".join(lines))
        return io.NodeOutput(accelerated, ui=ui.text_ui(lines))


def _with_steps(acceleration: Acceleration, steps: int) -> Acceleration:
    if not steps:
        return acceleration
    solver = acceleration.solver
    return replace(acceleration, solver=Solver(steps) if solver is None else replace(solver, steps=steps))


def _step_cache(preset: Preset, name: str, threshold: float) -> MagnitudeCache | ChangeCache | None:
    made = {OFF: None, BY_MAGNITUDES: MagnitudeCache(threshold), BY_CHANGE: ChangeCache(threshold)}
    return made.get(name, preset.acceleration.step_cache)


def _lines(model: EngineSet) -> list[str]:
    """The preset's sentences for the user."""
    preset = model.preset
    lines = [preset.name, *preset.acceleration.words, preset.quality, *preset.notes]
    if isinstance(preset.acceleration.step_cache, MagnitudeCache) and not find_magnitudes(model.model, model.store):
        lines.append(NO_RATIOS)
    return [line for line in lines if line]

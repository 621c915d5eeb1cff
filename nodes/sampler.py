"""DDIM Sampler."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..pipeline.conditioning import Conditioning as Encoded
from ..pipeline.denoising.schedulers import LEAST_STRENGTH, MAX_STEPS, SCHEDULERS, SHIFTS, SamplerSettings
from ..runtime.clip_plan import MAX_GUIDANCE, Denoising, SamplingPlan, plan_clip, plan_sampling
from ..runtime.engines.engine_set import EngineSet
from ..runtime.result_cache import Sampled, sample_or_recall
from .host import folders, ui
from .host.peak_memory import PeakMemory
from .host.preview import previewer, workflow_of
from .inputs import CATEGORY, Conditioning, Model, advanced, latent_of, samples_of, sockets
from .limits import MostFloat

MODEL_DEFAULT = -1.0
MODEL_SHIFT = 0.0


class DDIMSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return ui.schema(
            node_id="I2VTRT_DDIMSampler",
            display_name="I2V DDIM Sampler",
            category=CATEGORY,
            description="Denoises a clip: from noise to latents, by DDIM or another scheduler that fits the model.",
            search_aliases=["ksampler", "denoise", "i2v sampler", "dpm++", "unipc", "euler"],
            inputs=[
                Model.Input("model", tooltip="From the Model Loader or the Engine Loader."),
                Conditioning.Input("conditioning", tooltip="From I2V Conditioning."),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=(1 << 64) - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same noise on every device.",
                ),
                io.Int.Input("steps", default=50, min=1, max=MAX_STEPS, tooltip="More is finer and slower."),
                io.Float.Input(
                    "guidance_scale",
                    default=9.0,
                    min=0.0,
                    max=MostFloat(MAX_GUIDANCE),
                    step=0.1,
                    tooltip="How closely to follow the prompt. At 1 or less only the prompt counts, at half the work.",
                ),
                advanced(
                    io.Float.Input(
                        "eta",
                        default=0.0,
                        min=0.0,
                        max=MostFloat(1.0),
                        step=0.01,
                        tooltip="DDIM's noise: 0 none, 1 as much as DDPM.",
                    )
                ),
                io.Combo.Input(
                    "scheduler",
                    options=list(SCHEDULERS),
                    default="ddim",
                    optional=True,
                    tooltip="I2VGen-XL was published with ddim, for which alone eta counts; "
                    "Stable Video Diffusion takes euler; Wan takes unipc, euler or dpmpp_2m.",
                ),
                advanced(
                    io.Float.Input(
                        "min_guidance_scale",
                        default=MODEL_DEFAULT,
                        min=MODEL_DEFAULT,
                        max=MostFloat(MAX_GUIDANCE),
                        step=0.1,
                        optional=True,
                        tooltip="The first frame's guidance, which rises to guidance_scale in the last. "
                        "-1 takes the model's own: 1 for Stable Video Diffusion, no rise for the others.",
                    )
                ),
                io.Boolean.Input(
                    "reuse_result",
                    default=False,
                    optional=True,
                    tooltip="Keeps the latents, and gives them at once when every input is the same again, "
                    "seed included.",
                ),
                advanced(
                    io.Float.Input(
                        "shift",
                        default=MODEL_SHIFT,
                        min=MODEL_SHIFT,
                        max=MostFloat(SHIFTS[1]),
                        step=0.1,
                        optional=True,
                        tooltip="Wan: more spends more of the steps on the noise. 0 takes the model's own.",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "late_guidance_scale",
                        default=MODEL_DEFAULT,
                        min=MODEL_DEFAULT,
                        max=MostFloat(MAX_GUIDANCE),
                        step=0.1,
                        optional=True,
                        tooltip="Wan 2.2 A14B: the guidance of the second expert. -1 takes guidance_scale.",
                    )
                ),
                io.Latent.Input(
                    "latents",
                    optional=True,
                    tooltip="Latents to begin from, of the conditioning's size: those of a smaller clip through "
                    "Upscale Latent, for example.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=LEAST_STRENGTH,
                    max=MostFloat(1.0),
                    step=0.01,
                    optional=True,
                    tooltip="With latents: the part of the steps that they go through, the last ones. Less keeps more "
                    "of them.",
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latents", tooltip="For I2V VAE Decode, or the core's with the same VAE.")
            ],
            hidden=[io.Hidden.unique_id, io.Hidden.extra_pnginfo],
        )

    @classmethod
    @sockets(model=EngineSet, conditioning=Encoded, latents=(dict, type(None)))
    def execute(
        cls,
        model: EngineSet,
        conditioning: Encoded,
        seed: int,
        steps: int,
        guidance_scale: float,
        eta: float,
        scheduler: str = "ddim",
        min_guidance_scale: float = MODEL_DEFAULT,
        reuse_result: bool = False,
        shift: float = MODEL_SHIFT,
        late_guidance_scale: float = MODEL_DEFAULT,
        latents: dict[str, Any] | None = None,
        strength: float = 1.0,
    ) -> io.NodeOutput:
        progress, peak = ui.Progress(cls.hidden.unique_id, steps), PeakMemory(model.device)
        workflow = workflow_of(cls.hidden.extra_pnginfo)
        preview = previewer(model.model, conditioning.num_frames, conditioning.fps, workflow)

        def on_step(done: int, total: int, latents: torch.Tensor) -> None:
            progress.step(done, total, preview(latents))
            progress.say(f"denoise: step {done} of {total}")

        with ui.sentences():
            progress.say("denoise: loading")
            settings = SamplerSettings(steps, scheduler, eta, _shift(shift), strength=strength)
            scales = (guidance_scale, settings, _scale(min_guidance_scale), _scale(late_guidance_scale))
            denoising = Denoising(seed, *scales)
            results = folders.result_cache() if reuse_result else None
            plan = plan_sampling(plan_clip(model, conditioning.size), denoising)
            if plan.calls_line is not None:
                progress.say(f"{model.preset.name}: {plan.calls_line}")
            start = None if latents is None else samples_of(latents)
            found = sample_or_recall(plan, conditioning, on_step, results, start)
            if found.place != "sampled":
                progress.step(steps, steps)
        lines = [*_lines(found, model, peak), *_preset(plan)]
        progress.say("\n".join(lines))
        return io.NodeOutput(latent_of(found.latents, model.model, conditioning), ui=ui.text_ui(lines))


def _scale(widget: float | None) -> float | None:
    return None if widget == MODEL_DEFAULT else widget


def _shift(widget: float | None) -> float | None:
    return None if widget == MODEL_SHIFT else widget


def _lines(found: Sampled, model: EngineSet, peak: PeakMemory) -> list[str]:
    if found.place != "sampled":
        return [f"result cache hit ({found.place}): {found.elapsed_s:.2f} s saved"]
    return [f"denoised in {found.elapsed_s:.2f} s", *peak.lines(), *_ran(model), *model.take_notes()]


def _preset(plan: SamplingPlan) -> list[str]:
    """The preset's calls of a clip and its quality, where it leaves any out."""
    if plan.calls_line is None:
        return []
    preset = plan.clip.engines.preset
    return list(filter(None, [f"{preset.name}: {plan.calls_line}", preset.quality, *preset.notes]))


def _ran(model: EngineSet) -> list[str]:
    """The backend of the model's denoiser, or of each of two."""
    if len(model.model.denoisers) == 1:
        return [model.describe(model.model.denoiser)]
    return [f"{name}: {model.describe(name)}" for name in model.model.denoisers]

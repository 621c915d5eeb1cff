"""The three stages of a clip over a set of engines: encode, denoise, decode."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..engine_builder.errors import InputError
from ..pipeline.cache import ConditioningCache
from ..pipeline.checks import check_number
from ..pipeline.conditioning import Conditioning, check_request, condition
from ..pipeline.decode import OnChunk, decode
from ..pipeline.models.base import ClipRequest, GuidanceScale, Stage, VideoModel
from ..pipeline.sampling import OnStep, SamplerSettings, make_scheduler, sample
from . import budget
from .budget import ClipSize
from .engines import EngineSet, clip_sizes

MAX_GUIDANCE = 100.0


@dataclass(frozen=True)
class Denoising:
    """How to sample a clip. A guidance scale of 1 or less runs the conditional branch alone, in half the time.

    With `min_guidance_scale` guidance goes evenly from that in the first frame to `guidance_scale` in the
    last; None leaves it to the family.
    """

    seed: int
    guidance_scale: float
    sampler: SamplerSettings
    min_guidance_scale: float | None = None

    def __post_init__(self) -> None:
        least = self.guidance_scale if self.min_guidance_scale is None else self.min_guidance_scale
        for scale in (self.guidance_scale, least):
            check_number("Guidance is", scale, 0, MAX_GUIDANCE)
        if type(self.seed) is not int or not 0 <= self.seed < 1 << 64:
            raise InputError(f"The seed is a whole number from 0 to {(1 << 64) - 1}, found {self.seed}.")

    @property
    def guided(self) -> bool:
        """Whether both branches run."""
        return self.guidance_scale > 1


def core_sizes(model: VideoModel, conditioning: Conditioning, denoising: Denoising) -> dict[str, int]:
    """The sizes at which sampling calls the core."""
    width, height, count = conditioning.width, conditioning.height, conditioning.num_frames
    return clip_sizes(model, width, height, count, guided=denoising.guided)


def encode_clip(engines: EngineSet, request: ClipRequest, cache: ConditioningCache, stage: Stage) -> Conditioning:
    """The clip's conditioning; see `pipeline.conditioning.condition`."""
    check_request(request)
    sizes = clip_sizes(engines.model, request.width, request.height, request.num_frames)
    size = ClipSize(request.width, request.height, request.num_frames)
    budgets = [budget.denoising(engines, guided=False), *budget.decoding(engines)]
    for each in budgets:  # the whole clip's, before anything is encoded for nothing
        each.check(size)
    with budget.explained(budgets[0], size):
        return condition(
            engines.model, request, engines.precision, engines.run, cache, stage, lambda: engines.prepare(sizes)
        )


def sample_clip(engines: EngineSet, conditioning: Conditioning, denoising: Denoising, on_step: OnStep) -> torch.Tensor:
    """Unscaled latents, float32 [frames, 4, height/8, width/8] on the CPU, as ComfyUI's LATENT holds them.

    Raises InputError when the conditioning is of another family, or the result is not finite.
    """
    model = engines.model
    if conditioning.family != model.family:
        raise InputError(f"Expected conditioning of {model.family}, found {conditioning.family}.")
    if denoising.sampler.scheduler not in model.schedulers:
        known, found = " or ".join(model.schedulers), denoising.sampler.scheduler
        raise InputError(f"{model.title} is sampled by the scheduler {known}, found {found}.")
    size = ClipSize(conditioning.width, conditioning.height, conditioning.num_frames)
    need = budget.denoising(engines, guided=denoising.guided)
    need.check(size)
    with budget.explained(need, size):
        return _sample(engines, conditioning, denoising, on_step)


def _sample(
    engines: EngineSet, conditioning: Conditioning, denoising: Denoising, on_step: OnStep
) -> torch.Tensor:
    model, device = engines.model, engines.device
    tensors = {name: tensor.to(device) for name, tensor in conditioning.tensors.items()}
    runner = engines.runner(model.core, core_sizes(model, conditioning, denoising))
    guidance = _guidance(model, denoising, conditioning.num_frames, device)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        # Without waiting: what was queued before must not be done first.
        inputs = model.prepare_input(x, t.to(device, non_blocking=True), tensors, denoising.guided)
        return model.combine(runner(inputs), guidance)

    generator = torch.Generator().manual_seed(denoising.seed)
    noise = model.noise(conditioning.width, conditioning.height, conditioning.num_frames, generator)
    scheduler = make_scheduler(denoising.sampler, model.scheduler_config)
    latents = sample(denoise, scheduler, noise.to(device), denoising.sampler, generator, on_step)
    if not bool(torch.isfinite(latents).all()):
        raise InputError(f"Sampling gave values that are not finite in {engines.precision}: choose bf16 or fp32.")
    return latents.cpu() / model.latent_scale


def _guidance(model: VideoModel, denoising: Denoising, num_frames: int, device: torch.device) -> GuidanceScale:
    first, last = denoising.min_guidance_scale, denoising.guidance_scale
    first = model.min_guidance_scale if first is None else first
    if first is None:
        return last
    return torch.linspace(first, last, num_frames).reshape(-1, 1, 1, 1).to(device)


def decode_clip(engines: EngineSet, latents: torch.Tensor, chunk: int, on_chunk: OnChunk) -> torch.Tensor:
    """Frames, float32 [frames, height, width, 3] in 0..1 on the CPU, from unscaled latents [frames, 4, h, w]."""
    channels = engines.model.latent_channels
    if latents.ndim != 4 or latents.shape[1] != channels:
        raise InputError(f"Expected latents as [frames, {channels}, height, width], found {list(latents.shape)}.")

    factor = engines.model.latent_factor
    count, _, height, width = latents.shape
    size = ClipSize(width * factor, height * factor, count)
    budgets = budget.decoding(engines)
    for each in budgets:
        each.check(size)

    def run(part: torch.Tensor) -> torch.Tensor:
        return engines.run("vae_decoder", {"latents": part})["image"]

    with budget.explained(budgets[0], size):
        return decode(latents, run, chunk, on_chunk, factor=factor)

"""The three stages of a clip, each from its plan and the last stage's result: encode, denoise, decode."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import MappingProxyType

import torch

from ..common.errors import InputError
from ..pipeline.conditioning import Conditioning, check_request, condition
from ..pipeline.decode import OnChunk, chunk_size, decode, most_at_once, scratch_bytes
from ..pipeline.denoising.sampler import Denoise, OnStep, sample
from ..pipeline.denoising.schedulers import make_scheduler
from ..pipeline.models.base import Stage, VideoModel
from ..pipeline.models.latent_space import TUNED_CHUNK
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from .accelerated import MadeCalls, accelerate, made_line
from .budget import explained
from .clip_plan import ClipPlan, SamplingPlan
from .clip_sizes import check_size
from .denoiser import Denoiser
from .engines.engine_set import EngineSet

NONE: Mapping[str, torch.Tensor] = MappingProxyType({})


def encode_clip(plan: ClipPlan, request: ClipRequest, cache: ConditioningCache, stage: Stage) -> Conditioning:
    """The conditioning of a request, at the plan's size; see `pipeline.conditioning.condition`.

    A clip that does not fit the memory is refused before anything is built or encoded. Raises InputError and
    BudgetError.
    """
    check_request(request)
    engines, size = plan.engines, plan.size
    check_size(engines.model, size)
    for each in (plan.step, plan.decode, plan.frames):  # the whole clip's, before anything is encoded for nothing
        each.check(size)
    request = replace(request, width=size.width, height=size.height, num_frames=size.num_frames)

    def prepare() -> None:
        plan.encode.check(size)  # conditioning that is kept needs no encoder
        for components, sizes in plan.engine_sizes:
            engines.prepare(sizes, components)

    with explained(plan.encode, size):
        found = condition(engines.model, request, engines.precision, engines.run, cache, stage, prepare)
    return replace(found, notes=(*plan.notes, *found.notes))


def sample_clip(
    plan: SamplingPlan,
    conditioning: Conditioning,
    on_step: OnStep,
    wrap: Callable[[Denoise], Denoise] | None = None,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Unscaled latents, float32 on the CPU, as ComfyUI's LATENT holds the family's.

    `wrap` puts a function around every call that the sampler asks for, to watch it. The clip begins from the LATENT
    `start`, where there is one, in place of noise alone. Raises InputError when the conditioning or `start` is of
    another family or size, for a strength below 1 without `start`, or when the result is not finite.
    """
    model, size, scheduler = plan.clip.engines.model, plan.clip.size, plan.denoising.sampler.scheduler
    if conditioning.family != model.family:
        raise InputError(f"Expected conditioning of {model.family}, found {conditioning.family}.")
    if conditioning.size != size:
        raise InputError(f"Expected conditioning of {size.words}, found {conditioning.size.words}.")
    if scheduler not in model.schedulers:
        known = " or ".join(model.schedulers)
        raise InputError(f"{model.title} is sampled by the scheduler {known}, found {scheduler}.")
    check_size(model, size)
    begun = _begun(plan, start)
    plan.step.check(size)
    with explained(plan.step, size):
        return _sample(plan, conditioning, on_step, wrap or (lambda denoise: denoise), begun)


def _begun(plan: SamplingPlan, start: torch.Tensor | None) -> torch.Tensor | None:
    """A LATENT to begin from as the sampler takes it, on the device."""
    model, size, strength = plan.clip.engines.model, plan.clip.size, plan.denoising.sampler.strength
    if start is None:
        if strength < 1:
            raise InputError(f"A strength below 1 is for latents to begin from, found {strength:g} and none.")
        return None
    found = latents_size(model, start)
    if found != size:
        raise InputError(
            f"Expected latents of {size.words}, as the conditioning is, found {found.words}: Upscale Latent makes them "
            "as large."
        )
    return (model.from_latent(start.float().cpu()) * model.latent_scale).to(plan.clip.engines.device)


def _sample(
    plan: SamplingPlan,
    conditioning: Conditioning,
    on_step: OnStep,
    wrap: Callable[[Denoise], Denoise],
    start: torch.Tensor | None,
) -> torch.Tensor:
    engines, denoising = plan.clip.engines, plan.denoising
    model = engines.model
    scheduler = make_scheduler(denoising.sampler, model.scheduler_config)
    denoise = Denoiser(plan, conditioning)
    generator = torch.Generator().manual_seed(denoising.seed)
    noise = model.noise(*plan.clip.size, generator)
    steps, made = _denoise(plan, denoise)
    latents = sample(wrap(steps), scheduler, noise.to(engines.device), denoising.sampler, generator, on_step, start)
    if plan.calls is not None:
        engines.note(made_line(made, plan.calls, plan.asked, plan.is_guided))
    if not bool(torch.isfinite(latents).all()):
        raise InputError(f"Sampling gave values that are not finite in {engines.precision}: choose bf16 or fp32.")
    return model.to_latent(model.finish(latents, denoise.tensors).cpu())


def _denoise(plan: SamplingPlan, denoiser: Denoiser) -> tuple[Denoise, MadeCalls]:
    """The denoising function of the clip, and its count of calls; accelerators begin anew with every clip."""
    made = MadeCalls()
    if plan.calls is None:
        return denoiser, made
    return accelerate(denoiser, plan.clip.engines.preset.acceleration, plan.calls, made), made


def latents_size(model: VideoModel, latents: torch.Tensor) -> ClipSize:
    """The size of the clip that a LATENT of the family stands for; raises InputError for latents of another family."""
    space = model.latent
    frames, _, height, width = space.unpack(latents).shape
    return ClipSize(width * space.factor, height * space.factor, space.num_frames(frames))


def decode_clip(
    plan: ClipPlan, latents: torch.Tensor, chunk: int, on_chunk: OnChunk, tensors: Mapping[str, torch.Tensor] = NONE
) -> torch.Tensor:
    """Frames, float32 [frames, height, width, 3] in 0..1 on the CPU, from a LATENT of the family.

    `chunk` frames are decoded at once, or as many as the decoder takes at least where that is more; no more than an
    engine of the decoder serves. `tensors` are the conditioning's, of which the decoder takes the model's
    `decoder_inputs`. Raises InputError for latents of another family or size, or where one of those is missing.
    """
    engines, size, model = plan.engines, plan.size, plan.engines.model
    found = latents_size(model, latents)
    if found != size:
        raise InputError(f"Expected latents of {size.words}, found {found.words}.")
    if missing := [words for name, words in model.decoder_inputs.items() if name not in tensors]:
        raise InputError(
            f"{model.title}'s decoder sees {' and '.join(missing)}, which these latents do not carry: expected those "
            "of I2V DDIM Sampler."
        )
    for each in (plan.decode, plan.frames):
        each.check(size)
    with explained(plan.decode, size):
        x, run, space = model.from_latent(latents), model.decoder(engines.run, tensors), model.latent
        at_once = _at_once(model, chunk, most_at_once(size.height, size.width))
        shortage = partial(_free_memory, engines)
        sizes = {"factor": space.factor, "time_factor": space.time_factor, "least": space.least_chunk}
        return decode(x, run, at_once, on_chunk, **sizes, on_shortage=shortage)


def fitting_chunk(plan: ClipPlan) -> int:
    """Number of frames of the clip to decode at once, after the pack has freed memory for them.

    No more than engines are tuned for on a GPU, where more are no faster; all frames where the memory is unknown.
    """
    engines, (width, height, frames) = plan.engines, plan.size
    if engines.device.type == "cuda" and not engines.model.decodes_over_time:
        frames = min(frames, TUNED_CHUNK)
    engines.note(engines.memory_manager.free_memory(scratch_bytes(height, width, frames), encoders=False))
    spare_bytes = engines.memory_manager.spare_bytes()
    fitting = frames if spare_bytes is None else chunk_size(spare_bytes, height, width, frames)
    return max(engines.model.latent.least_chunk, fitting)


def _free_memory(engines: EngineSet, frames: int) -> bool:
    """Frees all memory that the pack can spare, the encoders' too if as few as can be do not fit."""
    is_least = frames <= engines.model.latent.least_chunk
    told = engines.memory_manager.free_memory(sys.maxsize, encoders=is_least)
    if told is None and not is_least:
        engines.note(f"Memory ran out with {frames} frames of latents at once: decoded in smaller chunks.")
    engines.note(told)
    return told is not None


def _at_once(model: VideoModel, chunk: int, most_frames: int) -> int:
    """A chunk of frames as latent frames, within the most that the engine serves."""
    if chunk < 1 or model.latent.time_factor == 1:
        return min(chunk, most_frames)
    most = model.components[model.decoder_component].spec.limits.ranges["chunk"].max
    return min(max(chunk // model.latent.time_factor, 1), most)

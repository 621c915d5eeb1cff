"""The three stages of a clip over a set of engines: encode, denoise, decode."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial

import torch

from ..common.errors import InputError
from ..pipeline.conditioning import Conditioning, check_request, condition
from ..pipeline.decode import OnChunk, chunk_size, decode, most_at_once, scratch_bytes
from ..pipeline.denoising.sampler import OnStep, sample
from ..pipeline.denoising.schedulers import make_scheduler
from ..pipeline.models.base import Stage, VideoModel
from ..pipeline.models.latent_space import TUNED_CHUNK
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from . import budget
from .clip_plan import Denoising, clip_sizes
from .denoiser import Denoiser
from .engines.engine_set import EngineSet


def engine_multiple(model: VideoModel) -> int:
    """Of how many pixels a clip's sides are multiples where the core's engines take it; eager PyTorch may take more."""
    return model.components[model.core].spec.limits.ranges["latent_width"].multiple * model.latent.factor


def encode_clip(
    engines: EngineSet, request: ClipRequest, cache: ConditioningCache, stage: Stage, *, shrink: bool = False
) -> Conditioning:
    """The clip's conditioning; see `pipeline.conditioning.condition`.

    A clip that does not fit the memory is refused before anything is built or encoded, or with `shrink` made as large
    as fits with guidance, which its notes say. Raises InputError and BudgetError.
    """
    check_request(request)
    asked = ClipSize(request.width, request.height, request.num_frames)
    clip_sizes(engines.model, *asked)
    # Whether guidance will double the batch is not known yet.
    budgets = [budget.denoising(engines, guided=shrink), *budget.decoding(engines)]
    size = budget.largest(budgets, asked, engine_multiple(engines.model)) if shrink else asked
    for each in budgets:  # the whole clip's, before anything is encoded for nothing
        each.check(size)
    request = replace(request, width=size.width, height=size.height, num_frames=size.num_frames)
    notes = () if size == asked else (f"Made as {size.words}, for {asked.words} does not fit the memory.",)
    sizes = clip_sizes(engines.model, *size)
    with budget.explained(budgets[0], size):
        found = condition(
            engines.model, request, engines.precision, engines.run, cache, stage, lambda: engines.prepare(sizes)
        )
    return replace(found, notes=(*notes, *found.notes))


def sample_clip(engines: EngineSet, conditioning: Conditioning, denoising: Denoising, on_step: OnStep) -> torch.Tensor:
    """Unscaled latents, float32 on the CPU, as ComfyUI's LATENT holds the family's.

    Raises InputError when the conditioning is of another family, or the result is not finite.
    """
    model = engines.model
    if conditioning.family != model.family:
        raise InputError(f"Expected conditioning of {model.family}, found {conditioning.family}.")
    if denoising.sampler.scheduler not in model.schedulers:
        known, found = " or ".join(model.schedulers), denoising.sampler.scheduler
        raise InputError(f"{model.title} is sampled by the scheduler {known}, found {found}.")
    size = ClipSize(conditioning.width, conditioning.height, conditioning.num_frames)
    need = budget.denoising(engines, guided=any(denoising.scale_of(core, model) > 1 for core in model.cores))
    need.check(size)
    with budget.explained(need, size):
        return _sample(engines, conditioning, denoising, on_step)


def _sample(engines: EngineSet, conditioning: Conditioning, denoising: Denoising, on_step: OnStep) -> torch.Tensor:
    model, device = engines.model, engines.device
    scheduler = make_scheduler(denoising.sampler, model.scheduler_config)
    denoise = Denoiser(engines, conditioning, denoising)
    generator = torch.Generator().manual_seed(denoising.seed)
    noise = model.noise(conditioning.width, conditioning.height, conditioning.num_frames, generator)
    latents = sample(denoise, scheduler, noise.to(device), denoising.sampler, generator, on_step)
    if not bool(torch.isfinite(latents).all()):
        raise InputError(f"Sampling gave values that are not finite in {engines.precision}: choose bf16 or fp32.")
    return model.to_latent(model.finish(latents, denoise.tensors).cpu())


def decode_clip(engines: EngineSet, latents: torch.Tensor, chunk: int, on_chunk: OnChunk) -> torch.Tensor:
    """Frames, float32 [frames, height, width, 3] in 0..1 on the CPU, from a LATENT of the family.

    `chunk` frames are decoded at once, or those of one frame of latents where that is more; no more than an engine
    of the decoder serves. Raises InputError for latents of another family.
    """
    model = engines.model
    x, factor = model.from_latent(latents), model.latent.factor
    count, _, height, width = x.shape
    size = ClipSize(width * factor, height * factor, model.latent.num_frames(count))
    budgets = budget.decoding(engines)
    for each in budgets:
        each.check(size)
    with budget.explained(budgets[0], size):
        run, time_factor = model.decoder(engines.run), model.latent.time_factor
        at_once = _at_once(model, chunk, most_at_once(size.height, size.width))
        shortage = partial(_relieve, engines)
        return decode(x, run, at_once, on_chunk, factor=factor, time_factor=time_factor, on_shortage=shortage)


def fitting_chunk(engines: EngineSet, height: int, width: int, frames: int) -> int:
    """How many frames of height x width (pixels) to decode at once, after the pack has let go of what is in the way.

    No more than engines are tuned for on a GPU, where more are no faster; all of them where nobody knows the memory.
    """
    if engines.device.type == "cuda" and not engines.model.decodes_over_time:
        frames = min(frames, TUNED_CHUNK)
    engines.note(engines.residency.relieve(scratch_bytes(height, width, frames), encoders=False))
    spare_bytes = engines.residency.spare_bytes()
    return frames if spare_bytes is None else chunk_size(spare_bytes, height, width, frames)


def _relieve(engines: EngineSet, frames: int) -> bool:
    """Has the pack let go of all that it can spare, of the encoders too before one frame alone is given up."""
    told = engines.residency.relieve(sys.maxsize, encoders=frames == 1)
    if told is None and frames > 1:
        engines.note(f"Memory ran out with {frames} frames of latents at once: decoded in smaller chunks.")
    engines.note(told)
    return told is not None


def _at_once(model: VideoModel, chunk: int, most_frames: int) -> int:
    """A chunk of frames in frames of latents, of which an engine serves so many frames at most."""
    if chunk < 1 or model.latent.time_factor == 1:
        return min(chunk, most_frames)
    most = model.components[model.decoder_component].spec.limits.ranges["chunk"].max
    return min(max(chunk // model.latent.time_factor, 1), most)

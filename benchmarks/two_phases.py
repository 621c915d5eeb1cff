"""A clip in two phases beside one: motion at a small size, then the last steps at the large one."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import decode_clip, encode_clip, fitting_chunk, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.engines.engine_set import EngineSet
from .clip_stages import ignore
from .ladder.measure import synchronize
from .measured_child import tell


@dataclass(frozen=True)
class Made:
    """Frames [frames, height, width, 3] in 0..1, and the seconds from picture to frames."""

    frames: Tensor
    elapsed_s: float


@dataclass(frozen=True)
class Phases:
    """A clip at a large size, and the small one at which its motion is made first; `strength` is the part of the steps
    that is taken at the large one."""

    small: ClipSize
    large: ClipSize
    strength: float


def in_one(engines: EngineSet, request: ClipRequest, denoising: Denoising, phases: Phases) -> Made:
    """The clip at the large size alone."""
    started = time.monotonic()
    latents = _latents(engines, request, phases.large, denoising)
    return _decoded(engines, phases.large, latents, started)


def in_two(engines: EngineSet, request: ClipRequest, denoising: Denoising, phases: Phases) -> Made:
    """The clip at the small size, its latents enlarged, and the last part of the steps at the large one."""
    started = time.monotonic()
    small = _latents(engines, request, phases.small, denoising)
    last = replace(denoising, sampler=replace(denoising.sampler, strength=phases.strength))
    latents = _latents(engines, request, phases.large, last, enlarged(engines, small, phases.large))
    return _decoded(engines, phases.large, latents, started)


def enlarged(engines: EngineSet, latents: Tensor, size: ClipSize) -> Tensor:
    """A LATENT at another height and width, each of its pictures by bicubic interpolation as Upscale Latent does it."""
    space = engines.model.latent
    target = (size.height // space.factor, size.width // space.factor)
    return space.pack(torch.nn.functional.interpolate(space.unpack(latents), target, mode="bicubic"))


def _latents(
    engines: EngineSet, request: ClipRequest, size: ClipSize, denoising: Denoising, start: Tensor | None = None
) -> Tensor:
    """Latents of a request at a size, from noise or from a LATENT; nothing is taken from a cache."""
    plan, asked = plan_clip(engines, size), replace(request, **size._asdict())
    conditioning = encode_clip(plan, asked, ConditioningCache(None), ignore)
    return sample_clip(plan_sampling(plan, denoising), conditioning, ignore, start=start)


def _decoded(engines: EngineSet, size: ClipSize, latents: Tensor, started: float) -> Made:
    plan = plan_clip(engines, size)
    frames = decode_clip(plan, latents, fitting_chunk(plan), ignore)
    synchronize(engines.device)
    return Made(frames, time.monotonic() - started)


WAYS = {"one_phase": in_one, "two_phase": in_two}
Pair = dict[str, Made]
"""A clip by each of the `WAYS`."""


def by_turns(engines: EngineSet, clips: Iterable[tuple[ClipRequest, Denoising]], phases: Phases) -> Iterator[Pair]:
    """Each clip by both ways, in turn, after a clip of two steps that builds and loads what they need."""
    warm = False
    for request, denoising in clips:
        if not warm:
            short = replace(denoising, sampler=replace(denoising.sampler, steps=2))
            for way in WAYS.values():
                way(engines, request, short, phases)
            warm = True
        made = {name: way(engines, request, denoising, phases) for name, way in WAYS.items()}
        tell(", ".join(f"{name} {each.elapsed_s:.2f} s" for name, each in made.items()))
        yield made


def seconds(pairs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median seconds of both ways over some clips, and the first by the second."""
    found = {f"{name}_s": statistics.median(pair[name] for pair in pairs) for name in WAYS}
    return {**found, "two_phase_ratio": found["one_phase_s"] / found["two_phase_s"]}

"""Measures how the residual of a checkpoint's network changes from step to step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ..pipeline.acceleration.magnitudes import Magnitudes, measuring
from ..pipeline.acceleration.presets import Preset
from ..pipeline.denoising.schedulers import SamplerSettings, make_scheduler
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from .calibration import FPS, CalibrationData
from .clip import encode_clip, sample_clip
from .clip_plan import Denoising, plan_clip, plan_sampling
from .engines.engine_set import EngineSet


@dataclass(frozen=True)
class MagnitudeOrder:
    """Pictures and prompts to sample, and the settings to do it with."""

    data: CalibrationData
    size: ClipSize
    sampler: SamplerSettings
    guidance_scale: float


def measure_magnitudes(engines: EngineSet, order: MagnitudeOrder, tell: Callable[[str], None]) -> Magnitudes:
    """Geometric means over the clips of each step's ratio; `tell` hears a line before each clip and may raise."""
    exact = engines.with_preset(Preset())
    found: list[list[float]] = []
    for number, (picture, prompt) in enumerate(order.data.clips):
        tell(f"clip {number + 1} of {len(order.data.clips)} ...")
        request = ClipRequest(picture, prompt, "", *order.size, FPS)
        plan = plan_clip(exact, order.size)
        conditioning = encode_clip(plan, request, ConditioningCache(None), _ignore)
        sampling = plan_sampling(plan, Denoising(number, order.guidance_scale, order.sampler))
        ratios: list[float] = []
        sample_clip(sampling, conditioning, _ignore, lambda denoise, kept=ratios: measuring(denoise, kept))
        found.append(ratios)
    means = [_geometric(values) for values in zip(*found, strict=True)]
    config = make_scheduler(order.sampler, engines.model.scheduler_config).config
    spacing = str(config.get("timestep_spacing", ""))
    return Magnitudes(tuple(means), order.sampler.scheduler, spacing, order.guidance_scale, len(found))


def _geometric(values: tuple[float, ...]) -> float:
    product = 1.0
    for value in values:
        product *= value
    return product ** (1 / len(values))


def _ignore(*_: object) -> None:
    """Watches no progress."""

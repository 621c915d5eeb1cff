"""The accelerators of a preset around a clip's denoiser, and a count of the calls that come through."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from ..pipeline.acceleration.deep_cache import reuse_deep
from ..pipeline.acceleration.guidance import Branched, gate
from ..pipeline.acceleration.schedule import Calls
from ..pipeline.acceleration.settings import Acceleration, ChangeCache, MagnitudeCache
from ..pipeline.acceleration.step_cache import reuse_by_change, reuse_residual
from ..pipeline.denoising.guidance import Branches
from ..pipeline.denoising.sampler import Denoise
from ..pipeline.denoising.schedulers import SamplerSettings
from .acceleration import spans
from .denoiser import Denoiser


@dataclass
class MadeCalls:
    """The network's calls that a clip has made: timestep and number of branches of each."""

    made: list[tuple[float, int]] = field(default_factory=list)

    @property
    def branches(self) -> int:
        """The number of times that the network has seen a branch."""
        return sum(branches for _, branches in self.made)


def accelerate(denoiser: Denoiser, acceleration: Acceleration, calls: Calls, made: MadeCalls) -> Denoise:
    """The denoiser's `denoise(x, t)` with the accelerators around it, with state of its own; counts calls in `made`."""
    predict: Branched = denoiser.predict
    if acceleration.deep_interval > 1:
        predict = reuse_deep(denoiser.whole, denoiser.shallow, calls.at(calls.whole))
    reuse = acceleration.guidance is not None and acceleration.guidance.reuse
    denoise = gate(_counted(predict, made), denoiser.combine, calls.at(calls.guided), reuse=reuse)
    if isinstance(acceleration.step_cache, MagnitudeCache):
        return reuse_residual(denoise, calls.at(calls.called))
    if isinstance(acceleration.step_cache, ChangeCache):
        always = set(calls.timesteps) - calls.at(calls.open)
        return reuse_by_change(denoise, acceleration.step_cache.threshold, always)
    return denoise


def _counted(predict: Branched, made: MadeCalls) -> Branched:
    def counted(x: torch.Tensor, t: torch.Tensor, branches: Branches) -> torch.Tensor:
        made.made.append((float(t), len(branches)))
        return predict(x, t, branches)

    return counted


def made_line(made: MadeCalls, calls: Calls, asked: SamplerSettings, guided: bool) -> str:
    """Sentence on the calls that a clip has made."""
    numbers = {t: step for step, t in enumerate(calls.timesteps)}
    called = sorted({numbers[t] for t, _ in made.made})
    each = 2 if guided else 1
    return f"{made.branches} of {asked.steps * each} calls made, at steps {spans(called)} of {len(calls.timesteps)}."

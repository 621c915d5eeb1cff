"""Schedulers and the loop over `denoise(x, t)`: it knows neither networks nor engines nor conditioning."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ..engine_builder.errors import CheckpointError, InputError
from .checks import check_number

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From latents [frames, channels, height, width] and a scalar timestep on the CPU to the prediction of that shape."""

OnStep = Callable[[int, int, torch.Tensor], None]
"""Told the steps done, the steps in all, and the current estimate of the clean latents; may raise to stop."""

# With the published `leading` the multistep classes start lower the more steps they take (951 of 1000 for 50
# steps, 501 for 500) and take pure noise for a blurred clip: they keep their own spacing.
_LINSPACE = {"timestep_spacing": "linspace"}

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": ("DDIMScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_LINSPACE}),
    "unipc": ("UniPCMultistepScheduler", _LINSPACE),
    "deis": ("DEISMultistepScheduler", _LINSPACE),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
}
"""The diffusers schedulers that take a v-prediction model as it is: the class, and what is set beside its config."""

MAX_STEPS = 500
"""Beyond half of the 1000 trained timesteps, diffusers' leading spacing stops before the noise is gone."""


@dataclass(frozen=True)
class SamplerSettings:
    """How to walk from noise to latents. `eta` is DDIM's: 0 is deterministic, 1 as noisy as DDPM."""

    steps: int
    scheduler: str = "ddim"
    eta: float = 0.0

    def __post_init__(self) -> None:
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"Steps are a whole number from 1 to {MAX_STEPS}, found {self.steps}.")
        if self.scheduler not in SCHEDULERS:
            raise InputError(f"The scheduler is one of {', '.join(SCHEDULERS)}, found {self.scheduler!r}.")
        check_number("Eta is", self.eta, 0, 1)


def make_scheduler(settings: SamplerSettings, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of that name over the checkpoint's published configuration.

    Raises CheckpointError when diffusers can make nothing of the configuration.
    """
    import diffusers

    class_name, extra = SCHEDULERS[settings.scheduler]
    cls = getattr(diffusers, class_name)
    known = set(inspect.signature(cls.__init__).parameters)
    # The published names that another class does not know would only make it warn.
    used = {name: value for name, value in config.items() if name in known}
    try:
        scheduler = cls.from_config(used, **extra)
        scheduler.set_timesteps(settings.steps)
    except Exception as error:  # diffusers raises whatever a senseless configuration leads to
        reason = str(error).rstrip(".")
        raise CheckpointError(f"Expected scheduler_config.json to make a {class_name}, found: {reason}.") from error
    return scheduler


def sample(
    denoise: Denoise,
    scheduler: Any,
    noise: torch.Tensor,
    settings: SamplerSettings,
    generator: torch.Generator,
    on_step: OnStep,
) -> torch.Tensor:
    """Latents from noise, both float32 [frames, channels, height, width].

    `noise` has unit variance; `generator` draws what a stochastic scheduler adds at its steps, on its own
    device. DDIM: Song et al. 2020, arXiv:2010.02502; the others as diffusers documents them.
    """
    # Timesteps stay on the CPU, where the schedulers' tables are: on a GPU every look at them would wait for it.
    scheduler.set_timesteps(settings.steps)
    known = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"eta": settings.eta} if "eta" in known else {}
    if "generator" in known:
        options["generator"] = generator
    x = noise * scheduler.init_noise_sigma
    timesteps, pace = scheduler.timesteps, _Pace(noise.device)
    for step, t in enumerate(timesteps, start=1):
        prediction = denoise(scheduler.scale_model_input(x, t), t)
        result = scheduler.step(prediction, t, x, **options)
        x = result.prev_sample
        clean = getattr(result, "pred_original_sample", None)
        pace.keep()
        on_step(step, len(timesteps), x if clean is None else clean)
    return x


class _Pace:
    """Lets the CPU run one step ahead of a GPU: the GPU never waits, and progress and interruption stay honest."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._last: Any = None

    def keep(self) -> None:
        """Called after each step: waits until the one before it is done."""
        if self._device.type != "cuda":
            return
        last, self._last = self._last, torch.cuda.Event()
        self._last.record(torch.cuda.current_stream(self._device))
        if last is not None:
            last.synchronize()

"""Schedulers by name, over a checkpoint's published configuration."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from ...common.errors import CheckpointError, InputError
from ...common.validation import check_number

# With the published `leading` the multistep classes start lower the more steps they take (951 of 1000 for 50
# steps, 501 for 500) and take pure noise for a blurred clip: they keep their own spacing.
_LINSPACE = {"timestep_spacing": "linspace"}

FLOW_EULER = "FlowMatchEulerDiscreteScheduler"

DDIM = "ClampedDDIMScheduler"
"""The pack's own, in `ddim`."""

SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddim": (DDIM, {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", **_LINSPACE}),
    "unipc": ("UniPCMultistepScheduler", _LINSPACE),
    "deis": ("DEISMultistepScheduler", _LINSPACE),
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "ddpm": ("DDPMScheduler", {}),
}
"""The schedulers that take a v-prediction model as it is: diffusers' class, and settings added to its config."""

FLOW_SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "unipc": ("UniPCMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    "euler": (FLOW_EULER, {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
}
"""The same for models of flow matching (Lipman et al. 2023, arXiv:2210.02747)."""

SPACINGS = ("leading", "linspace", "trailing")
"""diffusers' ways to place the timesteps: few steps want `trailing`, which begins where the noise is whole."""

MAX_STEPS = 500
"""Beyond half of the 1000 trained timesteps, diffusers' leading spacing stops before the noise is gone."""
LEAST_STRENGTH = 0.01
SHIFTS = (0.01, 100.0)
"""The least and the greatest shift."""


@dataclass(frozen=True)
class SamplerSettings:
    """Settings of the path from noise to latents. `eta` is DDIM's: 0 is deterministic, 1 as noisy as DDPM.

    `shift` moves the steps of flow matching towards the noise, 1 leaving them even (Esser et al. 2024,
    arXiv:2403.03206); None takes the checkpoint's own. `spacing` is one of `SPACINGS`, None the scheduler's own.
    `strength` is the part of the steps, the last ones, that latents go through which are there already (Meng et al.
    2021, arXiv:2108.01073).
    """

    steps: int
    scheduler: str = "ddim"
    eta: float = 0.0
    shift: float | None = None
    spacing: str | None = None
    strength: float = 1.0

    @property
    def taken(self) -> int:
        """Number of the steps that are taken."""
        return max(round(self.steps * self.strength), 1)

    def __post_init__(self) -> None:
        if type(self.steps) is not int or not 1 <= self.steps <= MAX_STEPS:
            raise InputError(f"Steps are a whole number from 1 to {MAX_STEPS}, found {self.steps}.")
        if self.scheduler not in SCHEDULERS:
            raise InputError(f"The scheduler is one of {', '.join(SCHEDULERS)}, found {self.scheduler!r}.")
        check_number("Eta is", self.eta, 0, 1)
        if self.shift is not None:
            check_number("Shift is", self.shift, *SHIFTS)
        check_number("Strength is", self.strength, LEAST_STRENGTH, 1)
        if self.spacing not in (None, *SPACINGS):
            raise InputError(f"The spacing is one of {', '.join(SPACINGS)}, found {self.spacing!r:.80}.")


def is_flow(config: Mapping[str, Any]) -> bool:
    """Whether a published scheduler's configuration is one of flow matching."""
    return config.get("_class_name") == FLOW_EULER or config.get("prediction_type") == "flow_prediction"


def make_scheduler(settings: SamplerSettings, config: Mapping[str, Any]) -> Any:
    """The diffusers scheduler of that name over the checkpoint's published configuration.

    Raises CheckpointError when diffusers cannot read the configuration, InputError for a scheduler or a
    shift that does not go with it.
    """
    class_name, extra = _class_and_settings(settings, config)
    if settings.spacing is not None:
        extra = {**extra, "timestep_spacing": settings.spacing}
    cls = _class_of(class_name)
    known = set(inspect.signature(cls.__init__).parameters)
    # The published names that another class does not know would only make it warn.
    used = {name: value for name, value in config.items() if name in known}
    try:
        scheduler = cls.from_config(used, **extra)
        set_timesteps(scheduler, settings.steps)
    except Exception as error:  # diffusers raises any error for a senseless configuration
        reason = str(error).rstrip(".")
        raise CheckpointError(f"Expected scheduler_config.json to make a {class_name}, found: {reason}.") from error
    return scheduler


def _class_of(name: str) -> Any:
    """A scheduler's class; imported here, so that only sampling pays for it."""
    if name == DDIM:
        from .ddim import ClampedDDIMScheduler

        return ClampedDDIMScheduler
    import diffusers

    return getattr(diffusers, name)


def _class_and_settings(settings: SamplerSettings, config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The scheduler's class, and the settings added to its published configuration."""
    if not is_flow(config):
        if settings.shift is not None:
            raise InputError(f"Only a model of flow matching has steps to shift, found a shift of {settings.shift:g}.")
        return SCHEDULERS[settings.scheduler]
    if settings.scheduler not in FLOW_SCHEDULERS:
        raise InputError(
            f"The schedulers of flow matching are {', '.join(FLOW_SCHEDULERS)}, found {settings.scheduler}."
        )
    class_name, extra = FLOW_SCHEDULERS[settings.scheduler]
    published = config.get("flow_shift", config.get("shift", 1.0))
    shift = published if settings.shift is None else settings.shift
    return class_name, {**extra, "shift" if class_name == FLOW_EULER else "flow_shift": shift}


def set_timesteps(scheduler: Any, steps: int) -> None:
    """Divides the way into steps; on the CPU, where the schedulers' tables are: a GPU would wait at every look."""
    if type(scheduler).__name__ == FLOW_EULER:
        # By itself it shifts its ends first and the steps between once more, and ends before the noise is gone.
        trained = scheduler.config.num_train_timesteps
        scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / trained, steps + 1, dtype=torch.float64)[:-1].tolist())
    else:
        scheduler.set_timesteps(steps)
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # found by its timestep it may be the second of two that are rounded to the same


def begin(scheduler: Any, settings: SamplerSettings) -> torch.Tensor:
    """The timesteps that are taken, once the way is divided: all, or the last ones that the strength leaves."""
    set_timesteps(scheduler, settings.steps)
    first = len(scheduler.timesteps) - settings.taken
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    return scheduler.timesteps[first:]


def with_noise(scheduler: Any, latents: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Latents as noisy as the scheduler's path is at the scalar timestep `t`, after `begin`."""
    if hasattr(scheduler, "add_noise"):
        return scheduler.add_noise(latents, noise, t[None])
    return scheduler.scale_noise(latents, t[None], noise)

"""The loop over `denoise(x, t)`: it knows neither networks nor engines nor conditioning."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from .schedulers import SamplerSettings, begin, with_noise

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""From latents [frames, channels, height, width] and a scalar timestep on the CPU to the prediction of that shape."""

OnStep = Callable[[int, int, torch.Tensor], None]
"""Callback with the steps done, the steps in all, and the current estimate of the clean latents; may raise to stop."""


def sample(
    denoise: Denoise,
    scheduler: Any,
    noise: torch.Tensor,
    settings: SamplerSettings,
    generator: torch.Generator,
    on_step: OnStep,
    start: torch.Tensor | None = None,
) -> torch.Tensor:
    """Latents from noise, both float32 [frames, channels, height, width].

    `noise` has unit variance. It is added to the latents `start`, where there are any, as the first step that is taken
    expects it: with a strength below 1 what is seen in them stays. `generator` draws the noise that a stochastic
    scheduler adds at its steps, on its own device. DDIM: Song et al. 2020, arXiv:2010.02502; the others as diffusers
    documents them.
    """
    timesteps, pace = begin(scheduler, settings), _Pace(noise.device)
    known = inspect.signature(scheduler.step).parameters
    options: dict[str, Any] = {"eta": settings.eta} if "eta" in known else {}
    if "generator" in known:
        options["generator"] = generator
    scaled = getattr(scheduler, "scale_model_input", lambda x, _: x)  # flow matching needs no scaling
    if start is None:
        x = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    else:
        x = with_noise(scheduler, start, noise, timesteps[0])
    for step, t in enumerate(timesteps, start=1):
        prediction = denoise(scaled(x, t), t)
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

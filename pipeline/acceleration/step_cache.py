"""Calls left out: what a call added to its input is added to a later input instead of another call."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..denoising.sampler import Denoise
from .guidance import Timesteps


def reuse_residual(denoise: Denoise, called: Timesteps) -> Denoise:
    """Calls `denoise` at the timesteps `called`, and adds the last call's residual to the latents at the others.

    The first step is always called. Source: MagCache (Ma et al. 2025, arXiv:2506.09045), over the whole network.
    """
    residual: torch.Tensor | None = None

    def cached(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal residual
        if residual is not None and float(t) not in called:
            return x + residual
        prediction = denoise(x, t)
        residual = prediction - x
        return prediction

    return cached


@dataclass
class _Last:
    """State of `reuse_by_change`: the last input, the last call's input and prediction, and the rates between them."""

    x: torch.Tensor
    called_x: torch.Tensor
    prediction: torch.Tensor
    rate: float | None = None
    """Change of the prediction for each change of the input, between the last two calls."""
    expected: float = 0.0
    """Expected relative change of the prediction since the last call."""


def reuse_by_change(denoise: Denoise, threshold: float, always: Timesteps) -> Denoise:
    """As `reuse_residual`, for as long as the prediction is expected to have changed by less than `threshold`.

    The change is estimated from the input's, which is read on the CPU at every step; timesteps of `always` are called
    whatever it is. Source: EasyCache (Zhou et al. 2025, arXiv:2507.02860).
    """
    last: _Last | None = None

    def cached(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal last
        if last is not None and last.rate is not None and float(t) not in always:
            last.expected += last.rate * _size(x - last.x) / _size(last.prediction)
            last.x = x
            if last.expected < threshold:
                return x + (last.prediction - last.called_x)
        prediction = denoise(x, t)
        rate = None if last is None else _size(prediction - last.prediction) / _size(x - last.called_x)
        last = _Last(x, x, prediction, rate)
        return prediction

    return cached


def _size(x: torch.Tensor) -> float:
    """The mean of the absolute values, never 0."""
    return max(float(x.abs().mean()), 1e-12)

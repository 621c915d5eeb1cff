"""Guidance at some timesteps alone, and its difference of the branches reused at the others."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch

from ..denoising.guidance import BOTH, CONDITIONAL, Branches
from ..denoising.sampler import Denoise

Branched = Callable[[torch.Tensor, torch.Tensor, Branches], torch.Tensor]
"""From latents [frames, channels, height, width], a scalar timestep on the CPU and some branches to their predictions:
[branches, ...], in the layout of the network's output."""

Combine = Callable[[torch.Tensor], torch.Tensor]
"""From the predictions of one branch or of both to the guided one, float32 [frames, channels, height, width]."""

Timesteps = Collection[float]


def gate(predict: Branched, combine: Combine, guided: Timesteps, *, reuse: bool) -> Denoise:
    """Runs both branches at the timesteps `guided` and the conditional one alone at the others.

    With `reuse` the others take the last difference of the branches in place of a new one; without it, and before
    there is one, they are not guided at all. Sources: the guidance interval of Kynkäänniemi et al. 2024
    (arXiv:2404.07724); the reused difference of adaptive guidance (Castillo et al. 2023, arXiv:2312.12487).
    """
    difference: torch.Tensor | None = None

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        nonlocal difference
        if float(t) in guided:
            both = predict(x, t, BOTH).float()
            difference = both[1:] - both[:1] if reuse else None
            return combine(both)
        conditional = predict(x, t, CONDITIONAL).float()
        if difference is None:
            return combine(conditional)
        return combine(torch.cat([conditional - difference, conditional]))

    return denoise

"""A UNet's deep features kept between calls: most calls run its shallow part alone."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..denoising.guidance import Branches
from .guidance import Branched, Timesteps

Whole = Callable[[torch.Tensor, torch.Tensor, Branches], tuple[torch.Tensor, torch.Tensor]]
"""As `Branched`, with the deep features [branches, ...] beside the predictions."""

Shallow = Callable[[torch.Tensor, torch.Tensor, Branches, torch.Tensor], torch.Tensor]
"""As `Branched`, given the branches' deep features."""


def reuse_deep(whole: Whole, shallow: Shallow, refreshed: Timesteps) -> Branched:
    """Runs the whole network at the timesteps `refreshed`, and the shallow part over its last features at the others.

    Branches whose features are not there are run whole at any timestep. Source: DeepCache (Ma et al. 2023,
    arXiv:2312.00858).
    """
    deep: torch.Tensor | None = None
    held = Branches(0)

    def predict(x: torch.Tensor, t: torch.Tensor, branches: Branches) -> torch.Tensor:
        nonlocal deep, held
        if deep is None or float(t) in refreshed or not set(branches) <= set(held):
            prediction, deep = whole(x, t, branches)
            held = branches
            return prediction
        first = branches.start - held.start
        return shallow(x, t, branches, deep[first : first + len(branches)])

    return predict

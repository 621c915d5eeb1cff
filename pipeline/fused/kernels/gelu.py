"""The gate of a transformer's feed-forward layer."""

from __future__ import annotations

import torch
from torch.nn import functional

from .operators import operator, serves


def gated_gelu(x: torch.Tensor) -> torch.Tensor:
    """From x [..., 2 * width], values and then gates, to value * GELU(gate), [..., width]; GELU by the normal's
    distribution function, not by tanh."""
    if serves(x, -1):
        return operator("gated_gelu")(x.flatten(0, -2)).unflatten(0, x.shape[:-1])
    return reference(x)


def reference(x: torch.Tensor) -> torch.Tensor:
    """The same by PyTorch's own GELU, on any device."""
    value, gate = x.chunk(2, -1)
    return value * functional.gelu(gate)

"""Group norm in two steps: moments of each channel, then one multiplication and one addition an element.

A group's mean and variance follow exactly from those of its channels, and channels are read in memory
order where groups are not. A bias that waits to be added before the norm needs no pass of its own: it moves
the means and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch

from .operators import operator, serves


def channel_moments(x: torch.Tensor) -> torch.Tensor:
    """Means and sums of squared distances from them, of x [items, rows, channels] over rows.

    Returns float32 [items, chunks, 2, channels]: each item's rows may be measured in several chunks.
    """
    if serves(x, 1, 2):
        return operator("channel_moments")(x)
    var, mean = torch.var_mean(x.float(), 1, correction=0)
    return torch.stack([mean, var * x.shape[1]], 1).unsqueeze(1)


def add_and_measure(
    x: torch.Tensor, other: torch.Tensor | None, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """x + other + bias and its channel moments in one pass; x and other [items, rows, channels], bias [channels]."""
    if serves(x, 1, 2):
        return operator("add_and_measure")(x, other, bias)
    total = x + bias if other is None else x + other + bias
    return total, channel_moments(total)


def scale_and_shift(
    moments: torch.Tensor, rows: int, items: int, offset: torch.Tensor | None, norm: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift of each channel by GroupNorm `norm`, from `channel_moments` of items of `rows` rows.

    Every `items` items in a row are normalised together. `offset` [batch, channels] waits to be added to the
    measured tensor and is contained in the shift. Returns two float32 [moments' items / items, channels].
    """
    if serves(moments, 1, 3):
        return operator("scale_and_shift")(
            moments, rows, items, offset, norm.weight, norm.bias, norm.num_groups, norm.eps
        )
    mean, inner = (m.unflatten(0, (-1, items)) for m in moments.squeeze(1).unbind(1))
    if offset is None:
        waiting = torch.zeros_like(mean[:, 0])
    else:
        waiting = offset.float().unsqueeze(1).expand(-1, mean.shape[0] // offset.shape[0], -1).flatten(0, 1)
    mean = (mean + waiting.unsqueeze(1)).unflatten(-1, (norm.num_groups, -1))
    centre = mean.mean((1, 3), keepdim=True)
    spread = (inner.unflatten(-1, (norm.num_groups, -1)) / rows + (mean - centre).square()).mean((1, 3))
    each = mean.shape[-1]
    scale = torch.rsqrt(spread + norm.eps).unsqueeze(-1).expand(-1, -1, each).flatten(1) * norm.weight.float()
    centre = centre.squeeze(1).expand(-1, -1, each).flatten(1)
    return scale, norm.bias.float() + (waiting - centre) * scale

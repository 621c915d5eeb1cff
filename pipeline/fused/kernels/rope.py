"""Norm over all heads and rotary positions of queries or keys, in one pass over memory.

A compiler makes six passes of it: the norm's sum, its product, two halves of the rotation, and their layout.
Source: RMSNorm (Zhang and Sennrich 2019, arXiv:1910.07467), RoPE (Su et al. 2021, arXiv:2104.09864).
"""

from __future__ import annotations

import torch

from .operators import operator, serves


def rms_rope(
    x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor, *, fused: bool
) -> torch.Tensor:
    """From x [batch, tokens, channels] to [batch, tokens, heads, head_dim], normalised over its channels and rotated.

    Each pair of neighbouring channels is turned by its position's angle: cos and sin float32 [tokens, head_dim / 2].
    weight [channels]; computed in fp32. `fused` allows the kernel, where it serves.
    """
    if fused and serves(x, 2):
        return operator("rms_rope")(x, weight, eps, cos, sin)
    normed = torch.nn.functional.rms_norm(x, weight.shape, weight, eps)
    even, odd = normed.unflatten(2, (-1, cos.shape[-1], 2)).float().unbind(-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)

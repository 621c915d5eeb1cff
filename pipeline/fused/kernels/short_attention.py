"""Attention over a handful of tokens, such as a clip's frames.

Flash attention is made for thousands of tokens; over 16 it moves data far below the memory's rate. The
kernel here takes one place and one head a program, reads its few tokens in place, and keeps
everything in registers.
"""

from __future__ import annotations

import torch

from .attention import attention
from .operators import operator, serves

MAX_TOKENS = 64
HEAD_WIDTHS = (16, 32, 64, 128)


def short_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention among the tokens of each place and head; all [batch, tokens, places, heads, width]."""
    if serves(q, 1, 3, 4) and q.shape[1] <= MAX_TOKENS and q.shape[-1] in HEAD_WIDTHS:
        return operator("short_attention")(q, k, v)
    return reference(q, k, v)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same by PyTorch's own attention, on any device."""
    batch, tokens, places, heads, width = q.shape
    q, k, v = (x.permute(0, 2, 3, 1, 4).reshape(batch * places, heads, tokens, width) for x in (q, k, v))
    y = attention(q, k, v)
    return y.reshape(batch, places, heads, tokens, width).permute(0, 3, 1, 2, 4)

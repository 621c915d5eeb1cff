"""Attention over a handful of tokens, such as a clip's frames, as one Triton kernel on CUDA.

Flash attention is made for thousands of tokens; over 16 it moves data far below the memory's rate. Here a
program takes one place and one head, reads its few tokens where they lie, and keeps everything in registers.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch.nn import functional

NAMESPACE = "i2v_tensorrt"
MAX_TOKENS = 64
HEAD_WIDTHS = (16, 32, 64, 128)


def attends_short(q: torch.Tensor) -> bool:
    """Whether the kernel takes queries [batch, tokens, places, heads, width]: on CUDA, few tokens, a usual width."""
    tokens = q.shape[1]
    few = isinstance(tokens, int) and tokens <= MAX_TOKENS
    return q.is_cuda and few and q.shape[-1] in HEAD_WIDTHS and _has_triton()


def short_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention among the tokens of each place and head; all [batch, tokens, places, heads, width].

    The last axis must be contiguous. Equal to `reference` up to rounding.
    """
    return _operator()(q, k, v)


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """The same by PyTorch's own attention, on any device."""
    q, k, v = (x.permute(0, 2, 3, 1, 4) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).permute(0, 3, 1, 2, 4)


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


@cache
def _operator() -> Any:
    """The kernel as an operator that torch.export keeps; registered once a process, whatever the pack is called."""
    found = getattr(getattr(torch.ops, NAMESPACE), "short_attention", None)
    if found is not None:
        return found
    from .short_attention_kernel import launch

    return torch.library.triton_op(f"{NAMESPACE}::short_attention", launch, mutates_args=())

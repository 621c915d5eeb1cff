"""Host memory that the GPU reads and writes by itself, as far as the system gives any.

WSL and containers lock little of it, and none is there without a GPU: plain memory then serves, by slower copies.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def page_locked_empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """A tensor on the CPU to which nothing has been written, in page-locked memory where the system locks some."""
    import torch

    try:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
    except RuntimeError:
        return torch.empty(tuple(shape), dtype=dtype)


def page_locked(tensor: torch.Tensor) -> torch.Tensor:
    """A copy of the tensor in page-locked memory, or the tensor itself where the system locks no more."""
    try:
        return tensor.pin_memory()
    except RuntimeError:
        return tensor

"""ONNX's operators on weights alone, in PyTorch: what an engine asks for when its weights are bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def _cast(x: torch.Tensor, *, to: str, **_: object) -> torch.Tensor:
    import torch

    return x.to(getattr(torch, to))


def _concat(*parts: torch.Tensor, axis: int) -> torch.Tensor:
    import torch

    return torch.cat(parts, dim=axis)


def _expand(x: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """By ONNX's rule, in which a size of the operand may be the larger one."""
    import torch

    return x.expand(torch.broadcast_shapes(x.shape, shape.tolist()))


def _gather(x: torch.Tensor, indices: torch.Tensor, *, axis: int = 0) -> torch.Tensor:
    chosen = x.index_select(axis, indices.flatten().long())
    axis %= x.ndim
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _reshape(x: torch.Tensor, shape: torch.Tensor, *, allowzero: int = 0) -> torch.Tensor:
    sizes = shape.tolist()
    return x.reshape([x.shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(sizes)])


def _squeeze(x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    return x.squeeze(tuple(axes.tolist()))


def _transpose(x: torch.Tensor, *, perm: Sequence[int]) -> torch.Tensor:
    return x.permute(*perm)


def _unsqueeze(x: torch.Tensor, axes: torch.Tensor) -> torch.Tensor:
    rank = x.ndim + axes.numel()
    for axis in sorted(axis % rank for axis in axes.tolist()):
        x = x.unsqueeze(axis)
    return x


OPERATORS: Mapping[str, Callable[..., torch.Tensor]] = {
    "Add": lambda x, y: x + y,
    "Cast": _cast,
    "Concat": _concat,
    "Div": lambda x, y: x / y,
    "Expand": _expand,
    "Gather": _gather,
    "Identity": lambda x: x,
    "Mul": lambda x, y: x * y,
    "Neg": lambda x: -x,
    "Reshape": _reshape,
    "Sigmoid": lambda x: x.sigmoid(),
    "Squeeze": _squeeze,
    "Sub": lambda x, y: x - y,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By ONNX's name; those that the families' graphs have, and their like."""

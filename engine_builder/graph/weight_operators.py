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
    axis %= x.ndim
    chosen = x.index_select(axis, indices.flatten().long() % x.shape[axis])  # a negative index counts from the end
    return chosen.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _reshape(x: torch.Tensor, shape: torch.Tensor, *, allowzero: int = 0) -> torch.Tensor:
    sizes = shape.tolist()
    return x.reshape([x.shape[axis] if size == 0 and not allowzero else size for axis, size in enumerate(sizes)])


def _slice(x: torch.Tensor, starts: torch.Tensor, ends: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
    """By ONNX's rule: further operands are the axes and the steps, by default the first axes and steps of 1."""
    axes = rest[0].tolist() if rest else range(starts.numel())
    steps = rest[1].tolist() if len(rest) > 1 else [1] * starts.numel()
    for axis, start, end, step in zip(axes, starts.tolist(), ends.tolist(), steps, strict=True):
        chosen = range(*slice(start, end if end > -(1 << 62) else None, step).indices(x.shape[axis]))
        x = _gather(x, starts.new_tensor(list(chosen)), axis=axis)
    return x


def _squeeze(x: torch.Tensor, axes: torch.Tensor | None = None) -> torch.Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes.tolist()))


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
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Sub": lambda x, y: x - y,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
"""By ONNX's name; those that the families' graphs have, and their like."""

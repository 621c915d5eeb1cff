"""Layer norm over rows together with what stands around it: an addition before, a modulation and a rounding after.

A compiler reads a row of some thousand channels once for its moments, once for the result and once more for each
further step; a kernel that holds the row reads it once.
Source: layer norm (Ba et al. 2016, arXiv:1607.06450), adaptive layer norm (Peebles and Xie 2022, arXiv:2212.09748).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .operators import operator, serves
from .rounding import RoundedRows, rounded_rows

Rows = torch.Tensor | RoundedRows


@dataclass(frozen=True)
class Modulation:
    """What a normalised row is multiplied by and what is added to it: fp32, [batch, groups, channels] or [channels]."""

    factor: torch.Tensor
    shift: torch.Tensor
    eps: float


def norm_rows(x: torch.Tensor, modulation: Modulation, *, rounds: bool, fused: bool) -> Rows:
    """The norm of each row of x [batch, groups, tokens, channels], modulated: [batch, groups * tokens, channels].

    Computed in fp32; `rounds` gives it in fp8, `fused` allows the kernel, where it serves.
    """
    if fused and serves(x, 3):
        _, values, scale = _kernel(x, None, None, None, modulation, rounds)
        return _result(x, values, scale)
    return _normed(x, modulation, rounds)


def add_and_norm(
    x: torch.Tensor,
    update: torch.Tensor,
    gate: torch.Tensor,
    offset: torch.Tensor | None,
    modulation: Modulation,
    *,
    rounds: bool,
    fused: bool,
) -> tuple[torch.Tensor, Rows]:
    """x + gate * update, with `offset` added to that, and its `norm_rows` without the offset.

    update as x or [batch, groups * tokens, channels]; gate fp32 [batch, groups, channels]; offset [channels].
    """
    update = update.reshape(x.shape)
    if fused and serves(x, 3):
        total, values, scale = _kernel(x, update, gate, offset, modulation, rounds)
        return total.reshape(x.shape), _result(x, values, scale)
    total = (x.float() + update * gate[:, :, None]).to(x.dtype)
    return total if offset is None else total + offset, _normed(total, modulation, rounds)


def _normed(x: torch.Tensor, modulation: Modulation, rounds: bool) -> Rows:
    factor, shift = (each if each.dim() == 1 else each[:, :, None] for each in (modulation.factor, modulation.shift))
    normed = torch.nn.functional.layer_norm(x.float(), x.shape[-1:], eps=modulation.eps)
    found = (normed * factor + shift).to(x.dtype).flatten(1, 2)
    return rounded_rows(found) if rounds else found


def _kernel(
    x: torch.Tensor,
    update: torch.Tensor | None,
    gate: torch.Tensor | None,
    offset: torch.Tensor | None,
    modulation: Modulation,
    rounds: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    channels = x.shape[-1]
    by_row = (None if each is None else each.reshape(-1, channels) for each in (x, update, gate))
    factor, shift = (each.reshape(-1, channels) for each in (modulation.factor, modulation.shift))
    by_group = modulation.factor.dim() > 1
    return operator("norm_rows")(*by_row, offset, factor, shift, x.shape[2], by_group, modulation.eps, rounds)


def _result(x: torch.Tensor, values: torch.Tensor, scale: torch.Tensor) -> Rows:
    shape = torch.Size((x.shape[0], x.shape[1] * x.shape[2], x.shape[3]))
    return RoundedRows(values, scale, shape, x.dtype) if values.dtype != x.dtype else values.reshape(shape)

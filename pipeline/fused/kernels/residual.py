"""A product that is added to a tensor in place.

A compiler writes the product, and then reads it again to add it. cuBLAS adds while it multiplies, but PyTorch's
`addmm` copies the tensor unless it may overwrite it, and graphs of torch.export overwrite nothing. So this is
an operator of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from .operators import library_operator

NAME = "add_product"


def add_product(stream: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """stream + x @ weight.T, for contiguous stream [..., out] and x [..., in], and weight [out, in].

    On a GPU the stream is overwritten: it is not to be read again.
    """
    if not stream.is_cuda:
        return stream + torch.nn.functional.linear(x, weight)
    register()(stream.view(-1, stream.shape[-1]), x.reshape(-1, x.shape[-1]), weight)
    return stream


def register() -> Any:
    """The operator; registered once a process, whatever the pack is called."""
    schema = "(Tensor(a!) stream, Tensor x, Tensor weight) -> ()"
    return library_operator(NAME, schema, _overwrite, lambda stream, x, weight: None, ("stream",))


def _overwrite(stream: torch.Tensor, x: torch.Tensor, weight: torch.Tensor) -> None:
    torch.addmm(stream, x, weight.t(), out=stream)

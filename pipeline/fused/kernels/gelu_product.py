"""A linear layer with the GELU after it in one product.

A compiler writes the product and passes over it once more; over a feed-forward layer's rows that is the largest pass
of a transformer's block. cuBLAS applies bias and GELU (its tanh form) before it writes, but PyTorch's operator for
that is taken apart when a graph is traced. So this is an operator of its own.
"""

from __future__ import annotations

from typing import Any

import torch

from .operators import library_operator

NAME = "gelu_product"


def gelu_product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """gelu(x @ weight.T + bias) in the tanh form, for x [..., in], weight [out, in] and bias [out]."""
    if not x.is_cuda:
        return torch.nn.functional.gelu(torch.nn.functional.linear(x, weight, bias), approximate="tanh")
    return register()(x.reshape(-1, x.shape[-1]), weight, bias).reshape(*x.shape[:-1], weight.shape[0])


def register() -> Any:
    """The operator; registered once a process, whatever the pack is called."""
    schema = "(Tensor x, Tensor weight, Tensor bias) -> Tensor"
    return library_operator(NAME, schema, _multiply, lambda x, weight, bias: x.new_empty(x.shape[0], weight.shape[0]))


def _multiply(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    return torch._addmm_activation(bias, x, weight.t(), use_gelu=True)

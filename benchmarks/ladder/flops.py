"""Floating-point operations of a network, counted without running it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch

from ...common.spec import NetworkSpec


def count_tflop(network: torch.nn.Module, spec: NetworkSpec, sizes: Mapping[str, int]) -> float:
    """Operations of one call at these sizes, in 10^12: products and sums of matrix products and convolutions.

    The network's weights are replaced by ones without values, wherever they are.
    """
    from torch.utils.flop_counter import FlopCounterMode

    tensors = chain(network.named_parameters(), network.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors}
    dtype = max(network.parameters(), key=torch.Tensor.numel).dtype  # small ones may be kept in full precision
    inputs = {
        tensor.name: torch.zeros(
            tensor.shape_at(sizes),
            dtype=dtype if tensor.dtype == "compute" else getattr(torch, tensor.dtype),
            device="meta",
        )
        for tensor in spec.inputs
    }
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        torch.func.functional_call(network, shapes, kwargs=inputs)
    return counter.get_total_flops() / 1e12

"""The Triton kernels as operators that torch.export keeps and Inductor compiles into the graph."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

NAMESPACE = "i2v_tensorrt"


def serves(x: torch.Tensor) -> bool:
    """Whether the kernels take the tensor: on a CUDA device, with Triton at hand, of sizes known when traced."""
    return x.is_cuda and all(isinstance(size, int) for size in x.shape) and _has_triton()


@cache
def operator(name: str) -> Any:
    """The kernel of that name in `triton_kernels`; registered once a process, whatever the pack is called."""
    registered = getattr(getattr(torch.ops, NAMESPACE), name, None)
    if registered is not None:
        return registered
    from . import triton_kernels

    return torch.library.triton_op(f"{NAMESPACE}::{name}", getattr(triton_kernels, name), mutates_args=())


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None

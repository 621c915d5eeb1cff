"""The Triton kernels as operators that torch.export keeps and Inductor compiles into the graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

NAMESPACE = "i2v_tensorrt"


def serves(x: torch.Tensor, *fixed: int) -> bool:
    """Whether the kernels take the tensor: on a CUDA device, with Triton at hand.

    `fixed` names the axes by whose sizes a kernel is made: those must be known when a network is traced.
    """
    return x.is_cuda and all(isinstance(x.shape[axis], int) for axis in fixed) and _has_triton()


@cache
def operator(name: str) -> Any:
    """The kernel of that name; registered once a process, whatever the pack is called."""
    registered = getattr(getattr(torch.ops, NAMESPACE), name, None)
    if registered is not None:
        return registered
    from . import triton_kernels, triton_row_kernels

    home = triton_row_kernels if hasattr(triton_row_kernels, name) else triton_kernels
    return torch.library.triton_op(f"{NAMESPACE}::{name}", getattr(home, name), mutates_args=())


def library_operator(
    name: str, schema: str, compute: Callable[..., Any], fake: Callable[..., Any], mutates: Iterable[str] = ()
) -> Any:
    """An operator that compiled code calls and takes apart no further; registered once a process, as `operator`.

    `fake` gives a result's shape and dtype, `mutates` names the arguments that `compute` overwrites.
    """
    registered = getattr(getattr(torch.ops, NAMESPACE), name, None)
    if registered is not None:
        return registered
    made = torch.library.custom_op(f"{NAMESPACE}::{name}", compute, mutates_args=tuple(mutates), schema=schema)
    made.register_fake(fake)
    return made


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None

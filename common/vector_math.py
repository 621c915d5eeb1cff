"""PyTorch's sines, exponentials and logarithms on a CPU, as exact from the first call on as they are later.

MKL chooses its routines at the first call. Where several threads make that call at once, as PyTorch does from some
thousand numbers on, some of its results are off by up to 2e-4: in a third of new processes on two idle cores (PyTorch
2.13). Tables of positions made then stay off for as long as the process lives. A small call before, from one thread,
prevents it.
"""

from __future__ import annotations


def settle_vector_math() -> None:
    """Has MKL choose its routines, from the one thread that calls this; to be called before any network is made."""
    import torch

    torch.sin(torch.ones(4))

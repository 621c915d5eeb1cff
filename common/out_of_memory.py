"""Recognition of out-of-memory errors: each library words them in its own way, and hosts know PyTorch's alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

CUDA_ERROR_MEMORY_ALLOCATION = 2
SCARCE_BYTES = 1 << 30
"""Free bytes of a GPU below which memory is short, whatever a computation takes."""
TOLERANCE = 1.25
"""Factor by which a computation may exceed the estimate of its memory."""
_NAMED = (
    "out of memory",
    "out_of_memory",
    "out_of_device_memory",
    "alloc_failed",
    "allocation_failed",
    "allocation failed",
    "bad alloc",
    "bad_alloc",
    "defaultcpuallocator",
)
"""Drivers, cuBLAS and cuDNN, C++ on each platform, PyTorch on a CPU."""


def says_out_of_memory(reason: str) -> bool:
    """Whether the sentence of a library that runs engines says that memory ran out."""
    text = reason.lower()
    return _names_it(text) or ("memory" in text and ("out of" in text or "alloc" in text))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that memory ran out: a device's or the host's, raised by whichever library."""
    import torch

    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if getattr(error, "error_code", None) == CUDA_ERROR_MEMORY_ALLOCATION:  # torch.AcceleratorError
        return True
    return isinstance(error, RuntimeError) and _names_it(str(error).lower())


def is_short(device: torch.device, needed_bytes: int) -> bool:
    """Whether a CUDA device has less left than `needed_bytes`, or next to nothing; False for any other device."""
    import torch

    if device.type != "cuda" or torch.cuda.is_current_stream_capturing():
        return False
    free, total = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept < max(TOLERANCE * needed_bytes, min(SCARCE_BYTES, total / 8))


def _names_it(text: str) -> bool:
    return any(name in text for name in _NAMED)

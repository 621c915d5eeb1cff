"""Devices: their architecture, their free memory, and the default one."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from .vector_math import settle_vector_math

if TYPE_CHECKING:
    import torch


def cuda_arch(device: torch.device) -> str | None:
    """The architecture of a CUDA device, such as `sm_89`; None for any other device."""
    import torch

    if device.type != "cuda" or not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a CUDA device the current one, whose stream libraries take; does nothing for any other."""
    import torch

    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def free_bytes(device: torch.device) -> int | None:
    """Free memory of a CUDA device in bytes, None for any other device."""
    import torch

    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def free_host_bytes() -> int | None:
    """Host memory that programs can take, in bytes; None where it is unknown."""
    try:
        import psutil
    except ImportError:  # ComfyUI brings it
        return None
    return psutil.virtual_memory().available


def free_cached(device: torch.device) -> None:
    """Lets other libraries have the memory that PyTorch keeps on a CUDA device for its own next tensors."""
    import torch

    if device.type == "cuda":
        torch.cuda.empty_cache()


def has_bf16(device: torch.device) -> bool:
    """Whether a device computes in bf16 by itself: CUDA GPUs from Ampere on, and others as far as PyTorch does."""
    import torch

    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def default_device() -> torch.device:
    """Default device outside ComfyUI: the first CUDA GPU, else the CPU, whose vector math is settled first."""
    import torch

    settle_vector_math()
    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")

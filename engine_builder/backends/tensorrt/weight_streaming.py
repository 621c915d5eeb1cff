"""Weights that do not fit on the GPU: they stay in host memory, and TensorRT brings each in time.

An engine can only do so if it was built for it, and does it no more than it has to: all weights stay on a GPU that
has room for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .library import Library

if TYPE_CHECKING:
    import torch

SHARE = 0.7
"""The part of a GPU's memory that weights may take: the rest is for activations, and for who draws the screen."""
RESERVE_BYTES = 512 << 20
"""Left free beside an engine, for the tensors that go in and out."""


@dataclass(frozen=True)
class Streaming:
    """Bytes of an engine's weights that could be streamed, and the bytes among them that stay on the GPU."""

    streamable_bytes: int = 0
    kept_bytes: int = 0

    @property
    def streamed_bytes(self) -> int:
        """Bytes of weights that stay in host memory."""
        return self.streamable_bytes - self.kept_bytes


def weights_bytes(module: torch.nn.Module) -> int:
    """Bytes of a network's weights."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def needs_streaming(weights: int, gpu: int | None) -> bool:
    """Whether that many bytes take too much of the GPU that an engine is built for; False for an unknown GPU."""
    return gpu is not None and weights > SHARE * gpu


def allow_streaming(library: Library, config: Any) -> None:
    """Makes the engine one whose weights can be streamed."""
    config.set_flag(library.module.BuilderFlag.WEIGHT_STREAMING)


def set_budget(engine: Any, free_bytes: int) -> Streaming:
    """Keeps as many weights on the GPU as fit beside the engine's own scratch memory; before a context is made.

    The library may keep fewer than it was allowed to.
    """
    streamable = int(engine.streamable_weights_size)
    if not streamable:
        return Streaming()
    # An engine for many sizes names the scratch memory of the greatest, which no GPU may have.
    scratch = min(int(engine.device_memory_size_v2), int((1 - SHARE) * free_bytes))
    room = free_bytes - scratch - RESERVE_BYTES
    if room < streamable:
        room -= int(engine.weight_streaming_scratch_memory_size)
    engine.weight_streaming_budget_v2 = min(max(room, 0), streamable)
    return Streaming(streamable, min(int(engine.weight_streaming_budget_v2), streamable))


def total_bytes(device: torch.device) -> int | None:
    """The memory of a CUDA device; None for another one."""
    import torch

    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def total_bytes_of(arch: str) -> int | None:
    """The memory of the GPU at hand; None if there is none of that architecture."""
    import torch

    from ....common.device import cuda_arch

    device = torch.device("cuda")
    return total_bytes(device) if cuda_arch(device) == arch else None

"""Blocks whose weights stay in host memory: each is brought to the device while the device computes another one.

Two buffers as large as a block take turns. What a block computes does not depend on where its weights were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from ...common.device import free_host_bytes
from ...common.page_locked import page_locked

if TYPE_CHECKING:
    import torch

BUFFERS = 2
PINNED_SHARE = 0.5
"""Part of the free host memory that may be pinned: the system cannot take pinned memory back."""


def held_count(total_bytes: int, block_bytes: int, count: int, room_bytes: int | None) -> int:
    """How many of `count` equal blocks, of weights of `total_bytes` in all, stay on a device with that room.

    None stands for room enough. Where some are brought in, the buffers take room too.
    """
    if room_bytes is None or total_bytes <= room_bytes:
        return count
    rest_bytes = total_bytes - count * block_bytes
    return min(max((room_bytes - rest_bytes) // max(block_bytes, 1) - BUFFERS, 0), count - 1)


def spread(count: int, held: int) -> tuple[int, ...]:
    """The numbers of the blocks that are brought in where `held` of `count` stay: as far from each other as can be."""
    streamed = count - held
    return tuple(number for number in range(count) if (number + 1) * streamed // count > number * streamed // count)


class BlockStream:
    """The brought blocks' weights, in the order of the blocks."""

    def __init__(self, weights: Mapping[int, Sequence[torch.Tensor]], device: torch.device) -> None:
        """`weights` are each block's tensors in host memory, of the same shapes and strides for every block."""
        import torch

        self._device, self._order = device, sorted(weights)
        self._weights = _pinned(weights) if device.type == "cuda" else dict(weights)
        first = next(iter(weights.values()))
        self._buffers = [[torch.empty_like(x, device=device) for x in first] for _ in range(BUFFERS)]
        self._content: list[int | None] = [None] * BUFFERS
        on_gpu = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if on_gpu else None
        self._there, self._used = ([torch.cuda.Event() if on_gpu else None for _ in range(BUFFERS)] for _ in range(2))

    @property
    def memory_bytes(self) -> int:
        """Memory of the buffers on the device."""
        return sum(tensor.nbytes for buffer in self._buffers for tensor in buffer)

    @contextmanager
    def brought(self, number: int) -> Iterator[Sequence[torch.Tensor]]:
        """A block's weights on the device, for as long as work is given to its current stream."""
        import torch

        if number not in self._content:
            self._begin(number, 0)
        slot = self._content.index(number)
        following = self._order[(self._order.index(number) + 1) % len(self._order)]
        if following not in self._content:
            self._begin(following, 1 - slot)
        there, used = self._there[slot], self._used[slot]
        if there is not None:
            torch.cuda.current_stream(self._device).wait_event(there)
        yield self._buffers[slot]
        if used is not None:
            used.record(torch.cuda.current_stream(self._device))

    def close(self) -> None:
        """Waits for the copies under way, whose buffers are then free to go."""
        if self._stream is not None:
            self._stream.synchronize()
        self._content = [None] * BUFFERS

    def _begin(self, number: int, slot: int) -> None:
        """Begins to copy a block's weights into a buffer, once its last block is computed."""
        import torch

        self._content[slot] = None  # until all copies are under way
        with torch.cuda.stream(self._stream):
            used, there = self._used[slot], self._there[slot]
            if self._stream is not None and used is not None:
                self._stream.wait_event(used)
            for target, source in zip(self._buffers[slot], self._weights[number], strict=True):
                target.copy_(source, non_blocking=True)
            if there is not None:
                there.record(self._stream)
        self._content[slot] = number


def _pinned(weights: Mapping[int, Sequence[torch.Tensor]]) -> dict[int, list[torch.Tensor]]:
    """The weights in pinned memory, which a GPU reads by itself, as far as there is enough of it."""
    room = int(PINNED_SHARE * (free_host_bytes() or 0))
    found: dict[int, list[torch.Tensor]] = {}
    for number, tensors in weights.items():
        room -= sum(tensor.nbytes for tensor in tensors)
        found[number] = [page_locked(tensor) if room > 0 and tensor.numel() else tensor for tensor in tensors]
    return found

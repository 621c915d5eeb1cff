"""Random numbers as a pure function of a seed, equal on every device and for every batch size.

A generator object would tie a clip to the batch and the device that drew it. Hashing (seed, stream,
index) instead makes each clip a function of its own seed, so that "never trained on" can be proven by
the seeds alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Avalanches 32-bit integers held in int64 (the finalizer of MurmurHash3)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


@cache
def _columns(counts: tuple[tuple[int, int], ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Distinct numbers of streams and indices: for (stream, count) pairs, two int64 rows (sum of counts,)."""
    streams = [(stream * 0x632BE5AB) & MASK for stream, count in counts for _ in range(count)]
    indices = [(index * 0x9E3779B1) & MASK for _, count in counts for index in range(1, count + 1)]
    return torch.tensor(streams, device=device), torch.tensor(indices, device=device)


@dataclass(frozen=True)
class Numbers:
    """Uniform numbers in [0, 1) of several streams, hashed at once: on a GPU each launch costs more than its work."""

    table: Tensor
    places: Mapping[int, slice]

    @classmethod
    def of(cls, seeds: Tensor, counts: Mapping[int, int]) -> "Numbers":
        """The number of values per stream in `counts`, for int64 seeds (B,); streams are independent."""
        pairs = tuple(counts.items())
        streams, indices = _columns(pairs, seeds.device)
        low = _mix((seeds & MASK) ^ 0x9E3779B9)
        start = low ^ _mix(((seeds >> 32) & MASK) + 0x7F4A7C15)
        state = _mix(start[:, None] ^ streams)
        table = (_mix(_mix(state ^ indices) ^ 0x5BD1E995) >> 8).to(torch.float32) / 2**24
        places, end = {}, 0
        for stream, count in pairs:
            places[stream] = slice(end, end + count)
            end += count
        return cls(table, places)

    def rows(self, which: Tensor) -> "Numbers":
        """Those of some of the seeds, by their places (N,)."""
        return Numbers(self.table[which], self.places)

    def __getitem__(self, stream: int) -> Tensor:
        """The numbers of one stream, float32 (B, count)."""
        return self.table[:, self.places[stream]]


def uniform(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1): int64 seeds (B,) -> float32 (B, count); other streams are independent."""
    return Numbers.of(seeds, {stream: count})[stream]


def below(numbers: Tensor, limit: int) -> Tensor:
    """Integers in [0, limit) from uniform numbers."""
    return (numbers * limit).to(torch.int64)


def integer(seeds: Tensor, stream: int, limit: int) -> Tensor:
    """Integers in [0, limit): int64 seeds (B,) -> int64 (B,)."""
    return below(uniform(seeds, stream, 1)[:, 0], limit)

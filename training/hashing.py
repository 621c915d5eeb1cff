"""Random numbers as a pure function of a seed, equal on every device and for every batch size.

A generator object would tie a clip to the batch and the device that drew it. Hashing (seed, stream,
index) instead makes each clip a function of its own seed, so that "never trained on" can be proven by
the seeds alone.
"""

import torch
from torch import Tensor

MASK = 0xFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    """Avalanches 32-bit integers held in int64 (the finalizer of MurmurHash3)."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & MASK
    return x ^ (x >> 16)


def uniform(seeds: Tensor, stream: int, count: int) -> Tensor:
    """Uniform numbers in [0, 1): int64 seeds (B,) -> float32 (B, count); other streams are independent."""
    low = _mix((seeds & MASK) ^ 0x9E3779B9)
    state = _mix(low ^ _mix(((seeds >> 32) & MASK) + 0x7F4A7C15) ^ ((stream * 0x632BE5AB) & MASK))
    index = torch.arange(1, count + 1, device=seeds.device) * 0x9E3779B1 & MASK
    return (_mix(_mix(state[:, None] ^ index[None, :]) ^ 0x5BD1E995) >> 8).to(torch.float32) / 2**24


def integer(seeds: Tensor, stream: int, limit: int) -> Tensor:
    """Integers in [0, limit): int64 seeds (B,) -> int64 (B,)."""
    return (uniform(seeds, stream, 1)[:, 0] * limit).to(torch.int64)

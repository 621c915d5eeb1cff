"""Owners of the device's memory, asked before a runner is used, and the evictions when memory is short."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ...engine_builder.backends.base import Runner

PRESSURE = 0.9
"""The share of a memory beyond which something gives way, before anything fails."""


class MemoryManager(Protocol):
    """Owner of the device's memory."""

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        """Loads the runner, after making room for it and for its scratch memory; returns sentences on evictions."""

    def free_memory(self, needed_bytes: int, *, encoders: bool) -> str | None:
        """Frees memory that the pack holds beside the clip, and with `encoders` theirs, while memory is short.

        Sentences on the freed memory, None without any. Memory is short while less than a tenth of it would be free
        beside `needed_bytes`.
        """

    def clear(self) -> None:
        """Frees the device for a build in another process."""

    def spare_bytes(self) -> int | None:
        """Bytes that one computation can take now before memory is short; None where unknown."""

    def room_bytes(self) -> int | None:
        """Bytes that one computation could have on the device with all others evicted; None where unknown."""

    def host_bytes(self) -> int | None:
        """Free bytes of host memory now; None where unknown."""


class LoadInPlace:
    """A memory manager without a host: loads and never evicts."""

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        runner.load()
        return None

    def free_memory(self, needed_bytes: int, *, encoders: bool) -> str | None:
        return None

    def clear(self) -> None:
        pass

    def spare_bytes(self) -> int | None:
        return None

    def room_bytes(self) -> int | None:
        return None

    def host_bytes(self) -> int | None:
        return None


@dataclass(frozen=True)
class Memory:
    """A memory of `total_bytes`; `free_bytes` reads how much of it is free."""

    total_bytes: int
    free_bytes: Callable[[], int]

    def spare_bytes(self) -> int:
        """Bytes that can be taken before the memory is nine tenths full; negative where it is fuller."""
        return self.free_bytes() - round(self.total_bytes * (1 - PRESSURE))


Eviction = Callable[[], str]
"""Function that frees memory and returns words on it that end a sentence, empty where there was none to free."""


def evict(memory: Memory, needed_bytes: int, evictions: Iterable[Eviction]) -> str | None:
    """Runs the evictions in order until `needed_bytes` fit.

    Returns one sentence on the freed memory, None where none was freed.
    """
    gone = []
    for make in evictions:
        if memory.spare_bytes() >= needed_bytes:
            break
        gone.append(make())
    told = ", ".join(filter(None, gone))
    return f"Memory is over {PRESSURE:.0%} full: let go of {told}." if told else None


def is_encoder(runner: Runner) -> bool:
    """Whether the runner's network has done its work before the first step of a clip."""
    return not runner.spec.network.component.startswith(("core", "vae_decoder"))

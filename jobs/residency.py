"""Who owns the device's memory: asked before a runner is used, and how much there is."""

from __future__ import annotations

from typing import Protocol

from ..engine_builder.backends.base import Runner


class Residency(Protocol):
    """Whoever owns the device's memory."""

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        """Loads the runner, after making room for it and for its scratch memory; a sentence if others had to go."""

    def clear(self) -> None:
        """Frees the device for a build in another process."""

    def room_bytes(self) -> int | None:
        """What one computation could have on the device, with all others gone from it; None where nobody knows."""

    def host_bytes(self) -> int | None:
        """Host memory that is free now; None where nobody knows."""


class LoadInPlace:
    """Residency without a host: loads and never evicts."""

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        runner.load()
        return None

    def clear(self) -> None:
        pass

    def room_bytes(self) -> int | None:
        return None

    def host_bytes(self) -> int | None:
        return None

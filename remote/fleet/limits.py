"""How often a job is tried, and what its tries have cost."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Limits:
    """How often to try, and how long to wait, in seconds.

    Args:
        crashes: how many workers one and the same job may end, on nodes that are still there.
        losses: how often a job may be lost for any reason, such as a node that went away.
        starts: how often a worker may fail to start before its place is given up.
        restart_s: between two starts of a worker that cannot work.
        look_s: between two looks for places that have come or gone.
        empty_s: how long to wait for the first place, or for another after the last has gone.
        workers: how many workers at most; None for all places.
    """

    crashes: int = 3
    losses: int = 10
    starts: int = 3
    restart_s: float = 10.0
    look_s: float = 1.0
    empty_s: float = 600.0
    workers: int | None = None


@dataclass
class _Trouble:
    """What a job has cost so far: the nodes that lost it, and crashes that the worker itself survived."""

    nodes: list[str] = field(default_factory=list)
    crashes: int = 0
    reason: str = ""


class Troubles:
    """The jobs that have cost a worker; a node that has gone since does not count against them."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_key: dict[str, _Trouble] = {}

    def crashed(self, key: str, reason: str) -> None:
        """What makes clips ended over the job; its worker goes on."""
        trouble = self._by_key.setdefault(key, _Trouble())
        trouble.crashes, trouble.reason = trouble.crashes + 1, reason

    def lost(self, key: str, node: str, reason: str) -> None:
        """The worker with the job is gone, and perhaps its node."""
        trouble = self._by_key.setdefault(key, _Trouble())
        trouble.nodes.append(node)
        trouble.reason = reason

    def too_much(self, key: str, alive: Collection[str]) -> str | None:
        """Why the job is not to be tried again, given the nodes that are there; None where it is."""
        trouble = self._by_key[key]
        crashes = trouble.crashes + sum(node in alive for node in trouble.nodes)
        if crashes >= self._limits.crashes:
            return f"its worker ended {crashes} times while it made this: {trouble.reason}"
        if len(trouble.nodes) >= self._limits.losses:
            return f"it was lost {len(trouble.nodes)} times, with its node or its worker: {trouble.reason}"
        return None

    def forget(self, key: str) -> None:
        """The job has ended."""
        self._by_key.pop(key, None)

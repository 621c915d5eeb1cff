"""What a long run tells while it goes on: the clip, its steps, and the time left at the pace so far."""

from __future__ import annotations

import time
from collections.abc import Callable

Tell = Callable[[str], None]
EVERY_S = 15.0
"""Seconds between two lines on the steps of a clip."""


class Progress:
    """Lines on a run of `calls` network calls, which should end within `limit_s` seconds, if that is given.

    The pace is that of everything since the start, the builds of engines too.
    """

    def __init__(self, tell: Tell, calls: float, limit_s: float | None = None) -> None:
        self._tell, self._calls, self._limit_s = tell, calls, limit_s
        self._started = self._told = time.monotonic()
        self._made = self._before = self._clip = 0.0

    def has_time(self, calls: float) -> bool:
        """Whether a clip of so many calls would end in time; before there is a pace, whether time is left at all."""
        spent_s = time.monotonic() - self._started
        return self._limit_s is None or spent_s + self._seconds_of(calls) <= self._limit_s

    def begin(self, name: str, calls: float) -> None:
        """Tells that a clip of so many calls begins."""
        self._before, self._clip = self._made, calls
        self._tell(f"{name}{self._left} ...")
        self._told = time.monotonic()

    def step(self, done: int, total: int, *_: object) -> None:
        """Counts a step of the clip, as a sampler's callback; tells one now and then."""
        self._made = self._before + self._clip * done / total
        if time.monotonic() - self._told >= EVERY_S:
            self._tell(f"step {done} of {total}{self._left}")
            self._told = time.monotonic()

    def end(self) -> None:
        """Ends the clip."""
        self._made = self._before + self._clip

    def _seconds_of(self, calls: float) -> float:
        spent_s = time.monotonic() - self._started
        return spent_s / self._made * calls if self._made else 0.0

    @property
    def _left(self) -> str:
        seconds = self._seconds_of(self._calls - self._made)
        if not self._made:
            return ""
        return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"

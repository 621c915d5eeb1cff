"""Positions of new frames among the old ones, as exact fractions: no rate drifts, however long the clip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction

from ...common.errors import InputError

MOST_FACTOR = 64
"""Largest number of frames that are made of one."""


@dataclass(frozen=True)
class Timing:
    """A new frame every `step` old frames, `count` of them in all; None: as many as the clip's duration holds.

    New frame n shows the clip at n * step, counted in old frames; past the last one, that one is held. So a clip keeps
    its duration, and its sound fits.
    """

    step: Fraction
    count: int | None = None

    def __post_init__(self) -> None:
        if not Fraction(1, MOST_FACTOR) <= self.step < MOST_FACTOR:
            found = float(1 / self.step) if self.step else math.inf
            raise InputError(f"Expected from 1/{MOST_FACTOR} to {MOST_FACTOR} new frames of each, found {found:g}.")

    def length(self, num_frames: int) -> int:
        """Number of new frames of a clip of so many old ones, at least one."""
        return self.count or max(math.ceil(num_frames / self.step), 1)

    def due(self, start: int, end: int, made: int) -> Iterator[Fraction]:
        """Positions from old frame `start` until before `end` of the new frames after the first `made`."""
        while (position := made * self.step) < end:
            if position >= start:
                yield position
            made += 1


def by_factor(factor: float) -> Timing:
    """So many new frames for each old one, such as 2 or 2.5; below 1 frames are left out."""
    return Timing(1 / _positive(factor, "factor"))


def by_rate(source: Fraction, target: float | Fraction) -> Timing:
    """From frames per second to others, both exact: 23.976 is taken as 24000/1001."""
    return Timing(source / exact(_positive(target, "target rate")))


def by_count(num_frames: int, count: int) -> Timing:
    """A clip of so many frames as one of `count`."""
    if num_frames < 1 or count < 1:
        raise InputError(f"Expected at least one frame of at least one, found {count} of {num_frames}.")
    return Timing(Fraction(num_frames, count), count)


def exact(rate: Fraction) -> Fraction:
    """A rate as people mean it: 29.97 is 30000/1001, other rates are what they say."""
    for base in (24, 30, 48, 60, 120):
        ntsc = Fraction(base * 1000, 1001)
        if abs(rate - ntsc) < Fraction(1, 200):
            return ntsc
    return rate


def _positive(value: float | Fraction, what: str) -> Fraction:
    try:
        found = Fraction(value).limit_denominator(100_000)
    except (ValueError, OverflowError, TypeError):
        found = Fraction(0)
    if found <= 0:
        raise InputError(f"Expected a {what} above 0, found {value!r:.40}.")
    return found

"""Which calls a clip makes: computed before it begins, wherever that does not depend on its data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .magnitudes import Magnitudes, called_steps
from .settings import Acceleration, ChangeCache, GuidanceGate, MagnitudeCache


@dataclass(frozen=True)
class Calls:
    """The calls of a clip, as numbers of its steps from 0.

    `called` runs the network, `guided` of these both branches, `whole` of these all of it and not its shallow part.
    `open` steps are called or not as the data has it.
    """

    timesteps: tuple[float, ...]
    called: tuple[int, ...]
    guided: tuple[int, ...]
    whole: tuple[int, ...]
    open: tuple[int, ...] = ()

    def at(self, steps: Sequence[int]) -> frozenset[float]:
        """The timesteps of some steps."""
        return frozenset(self.timesteps[step] for step in steps)

    @property
    def branches(self) -> int:
        """The number of times that the network sees a branch, as far as it is known."""
        return len(self.called) + len(set(self.called) & set(self.guided))


def plan_calls(
    acceleration: Acceleration,
    timesteps: Sequence[float],
    experts: Sequence[str],
    guided: Sequence[bool],
    magnitudes: Magnitudes | None,
) -> Calls:
    """The calls over a clip's timesteps.

    `experts` names each step's denoiser: its first step is always called, guided and whole. `guided` says of each step
    whether its guidance takes both branches. Without `magnitudes` a `MagnitudeCache` leaves out nothing.
    """
    steps = range(len(timesteps))
    fresh = [step for step in steps if step == 0 or experts[step] != experts[step - 1]]
    called, open_steps = _called(acceleration.step_cache, len(timesteps), fresh, magnitudes)
    both = [
        step for step in steps if guided[step] and (step in fresh or _is_inside(acceleration.guidance, step, steps))
    ]
    whole = _whole(called, fresh, acceleration.deep_interval)
    return Calls(tuple(timesteps), tuple(called), tuple(both), tuple(whole), tuple(open_steps))


def _called(
    cache: MagnitudeCache | ChangeCache | None, steps: int, fresh: Sequence[int], magnitudes: Magnitudes | None
) -> tuple[list[int], list[int]]:
    """The steps that are called, and those that may be."""
    everything = list(range(steps))
    if isinstance(cache, ChangeCache):
        kept = math.ceil(cache.kept * steps)
        return everything, [step for step in everything[kept:-1] if step not in fresh]
    if cache is None or magnitudes is None:
        return everything, []
    return called_steps(magnitudes.at(steps), cache, fresh), []


def _is_inside(gate: GuidanceGate | None, step: int, steps: range) -> bool:
    return gate is None or gate.begin * len(steps) <= step < gate.end * len(steps)


def _whole(called: Sequence[int], fresh: Sequence[int], interval: int) -> list[int]:
    """Every `interval`-th call since a fresh one."""
    found, count = [], 0
    for step in called:
        count = 0 if step in fresh else count + 1
        if count % interval == 0:
            found.append(step)
    return found

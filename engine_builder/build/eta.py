"""Remaining time of a build, for the line that its user reads."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...common.spec import EngineSpec
from ..backends.base import Report
from ..store.store import EngineStore

TOLD_FROM_S = 5
"""Seconds of elapsed and remaining time from which the remaining time is shown."""
LEAST_DONE = 0.1
"""The fraction done from which the rest can be estimated."""
STEP_S = 10
MINUTES_FROM_S = 120


class Remaining:
    """Adds the remaining time of the whole build to a stage's name.

    `expected_s` is the time of an earlier build of this kind, None if there was none; once that time has passed, or
    without it, the fraction done decides.
    """

    def __init__(self, expected_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._expected_s = expected_s
        self._clock = clock
        self._started_s = clock()

    def over(self, report: Report) -> Report:
        """A report that hands on to `report` with the time left."""
        return lambda stage, done: report(self.told(stage, done), done)

    def told(self, stage: str, done: float) -> str:
        """The stage, and in brackets the remaining time where it can be estimated."""
        left_s = self._left_s(done)
        return stage if left_s is None or left_s < TOLD_FROM_S else f"{stage} (about {_rounded(left_s)} left)"

    def _left_s(self, done: float) -> float | None:
        elapsed_s = self._clock() - self._started_s
        if self._expected_s is not None and elapsed_s < self._expected_s:
            return self._expected_s - elapsed_s
        if done < LEAST_DONE or elapsed_s < TOLD_FROM_S:
            return None
        return elapsed_s * (1 - done) / done


def last_build_s(spec: EngineSpec, backend: str, store: EngineStore) -> float | None:
    """The seconds of the last build of the same component and precision by the backend, at any sizes."""
    kind = (spec.network.family, spec.network.component, spec.precision, backend)
    found = [
        (plan.manifest.created_at, plan.manifest.build_s)
        for plan in store.plans()
        if kind
        == (
            plan.manifest.spec.network.family,
            plan.manifest.spec.network.component,
            plan.manifest.spec.precision,
            plan.manifest.target.backend,
        )
    ]
    return max(found)[1] if found else None


def _rounded(seconds: float) -> str:
    if seconds >= MINUTES_FROM_S:
        return f"{round(seconds / 60)} min"
    return f"{max(round(seconds / STEP_S), 1) * STEP_S} s"

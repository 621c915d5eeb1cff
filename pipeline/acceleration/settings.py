"""Settings of accelerators: frozen data that presets and nodes make."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...common.errors import InputError
from ...common.validation import check_number
from ..denoising.schedulers import SCHEDULERS, SPACINGS, SamplerSettings

MAX_INTERVAL, MAX_IN_A_ROW = 16, 16


@dataclass(frozen=True)
class Solver:
    """A clip's schedule in place of a longer one: its scheduler, steps and spacing of timesteps.

    None takes the scheduler that was asked for, and the spacing of the checkpoint.
    """

    steps: int
    scheduler: str | None = None
    spacing: str | None = None

    def __post_init__(self) -> None:
        _check_whole("Steps of a solver are", self.steps, 500)
        if self.scheduler is not None and self.scheduler not in SCHEDULERS:
            raise InputError(f"The scheduler is one of {', '.join(SCHEDULERS)}, found {self.scheduler!r:.80}.")
        if self.spacing is not None and self.spacing not in SPACINGS:
            raise InputError(f"The spacing is one of {', '.join(SPACINGS)}, found {self.spacing!r:.80}.")

    def settings(self, asked: SamplerSettings) -> SamplerSettings:
        """The clip's settings; those that were asked for where they have no more steps, or noise at each of them."""
        if asked.steps <= self.steps or asked.eta > 0:
            return asked
        scheduler = asked.scheduler if self.scheduler is None else self.scheduler
        return replace(asked, steps=self.steps, scheduler=scheduler, spacing=self.spacing or asked.spacing)


@dataclass(frozen=True)
class GuidanceGate:
    """The share of a clip's steps, from `begin` to `end`, at which both branches run; see `guidance.gate`."""

    begin: float = 0.0
    end: float = 1.0
    reuse: bool = True

    def __post_init__(self) -> None:
        check_number("The begin of guidance is", self.begin, 0, 1)
        check_number("The end of guidance is", self.end, 0, 1)


@dataclass(frozen=True)
class MagnitudeCache:
    """Steps left out while the residuals' measured magnitudes change by less than `threshold` in sum.

    No more than `most_in_a_row` at once, none in the first share `kept` of the steps; see `magnitudes.called_steps`.
    """

    threshold: float
    most_in_a_row: int = 2
    kept: float = 0.2

    def __post_init__(self) -> None:
        check_number("The threshold of a step cache is", self.threshold, 0, 10)
        check_number("The kept share of a step cache is", self.kept, 0, 1)
        _check_whole("Steps left out in a row are", self.most_in_a_row, MAX_IN_A_ROW)


@dataclass(frozen=True)
class ChangeCache:
    """Steps left out while the prediction is expected to change by less than `threshold`; see `reuse_by_change`.

    The first share `kept` of the steps and the last one are always called.
    """

    threshold: float
    kept: float = 0.2

    def __post_init__(self) -> None:
        check_number("The threshold of a step cache is", self.threshold, 0, 10)
        check_number("The kept share of a step cache is", self.kept, 0, 1)


@dataclass(frozen=True)
class Acceleration:
    """The accelerators of a clip; without any it is exact. `deep_interval` calls share their deep features."""

    solver: Solver | None = None
    guidance: GuidanceGate | None = None
    step_cache: MagnitudeCache | ChangeCache | None = None
    deep_interval: int = 1

    def __post_init__(self) -> None:
        _check_whole("Calls that share deep features are", self.deep_interval, MAX_INTERVAL)

    @property
    def is_exact(self) -> bool:
        """Whether every call is made as it is asked for."""
        return self == EXACT

    @property
    def words(self) -> list[str]:
        """A line on each accelerator."""
        solver, gate, cache = self.solver, self.guidance, self.step_cache
        lines = []
        if solver is not None:
            named = ", ".join(name for name in (solver.scheduler, solver.spacing) if name)
            lines.append(f"at most {solver.steps} steps{f' by {named}' if named else ''}")
        if gate is not None and (gate.begin, gate.end) != (0.0, 1.0):
            after = "its last difference reused after" if gate.reuse else "none outside"
            lines.append(f"guidance in {gate.begin:.0%} to {gate.end:.0%} of the steps, {after}")
        if cache is not None:
            kind = "magnitudes" if isinstance(cache, MagnitudeCache) else "change"
            lines.append(f"steps left out by {kind}, threshold {cache.threshold:g}")
        if self.deep_interval > 1:
            lines.append(f"deep features anew at one of {self.deep_interval} calls")
        return lines

    def sampler(self, asked: SamplerSettings) -> SamplerSettings:
        """Settings of the clip's sampler."""
        return asked if self.solver is None else self.solver.settings(asked)


def _check_whole(what: str, value: object, most: int) -> None:
    if type(value) is not int or not 1 <= value <= most:
        raise InputError(f"{what} a whole number from 1 to {most}, found {value!r:.80}.")


EXACT = Acceleration()

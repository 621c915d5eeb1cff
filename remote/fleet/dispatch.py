"""Hands jobs to workers, one each at a time, until every job has ended; knows neither Ray nor ComfyUI.

Work may be done twice, where a worker or its node is lost; what it makes is published once, by the first to finish.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import I2VError
from ..batch.records import Record, Records
from .attempt import ask_to_stop, sweep_tries_of, wish_path
from .clip_job import ClipJob, Outcome
from .crew import Answer, Crew, Slot
from .limits import Limits, Troubles


class FleetError(I2VError):
    """There is no worker that can make clips; the same command goes on once there is one."""


@dataclass
class _Place:
    """A slot with its worker, and the job that it has."""

    slot: Slot
    job: ClipJob | None = None
    failures: int = 0
    ready_at: float = 0.0


Tell = Callable[[ClipJob, Outcome], None]


class Dispatcher:
    """The jobs that wait, and the places that make them; `step` moves everything on.

    Raises FleetError from `step` where no place can work.
    """

    def __init__(
        self, crew: Crew, out: Path, tell: Tell, note: Callable[[str], None], limits: Limits | None = None
    ) -> None:
        self._crew, self._out, self._tell, self._note = crew, out, tell, note
        self._limits = limits or Limits()
        self._records = Records(out)
        self._waiting: deque[ClipJob] = deque()
        self._places: dict[Slot, _Place] = {}
        self._given_up: dict[Slot, str] = {}
        self._troubles = Troubles(self._limits)
        self._slots: set[Slot] = set()
        self._look_at = 0.0
        self._empty_since: float | None = None

    def add(self, job: ClipJob) -> None:
        """Puts a job in line."""
        self._waiting.append(job)

    def cancel(self, key: str) -> bool:
        """Takes a job out of the line, or asks its worker to end it; returns whether it was there."""
        found = next((job for job in self._waiting if job.key == key), None)
        if found is not None:
            self._waiting.remove(found)
            self._end(found, Outcome("cancelled", "", "it was cancelled"))
            return True
        if key in self.running():
            ask_to_stop(self._out, key)
            return True
        return False

    def try_all_places(self) -> None:
        """Gives places that were given up another chance."""
        self._given_up.clear()

    def running(self) -> set[str]:
        """The keys of the jobs that workers have."""
        return {place.job.key for place in self._places.values() if place.job is not None}

    @property
    def is_idle(self) -> bool:
        """Whether every job has ended."""
        return not self._waiting and not self.running()

    def step(self, timeout_s: float = 0.5) -> None:
        """Starts workers, hands out jobs, and waits so long for an answer."""
        if time.monotonic() >= self._look_at:
            self._look()
        self._hand_out()
        for answer in self._crew.wait(timeout_s):
            self._take(answer)
        if self._waiting:
            self._check_places()

    def _look(self) -> None:
        """Starts a worker in each place that has come, as long as there is work, and leaves those that have gone."""
        slots = self._crew.slots()
        self._slots = set(slots)
        for slot in [slot for slot, place in self._places.items() if slot not in self._slots and place.job is None]:
            self._leave(slot)
        wanted = Counter(job.kind for job in self._waiting)
        for place in self._places.values():
            if place.job is None:
                _takes_one(wanted, place.slot.kind)
        for slot in slots:
            if len(self._places) >= (self._limits.workers or len(slots)):
                break
            if slot not in self._places and slot not in self._given_up and _takes_one(wanted, slot.kind):
                self._crew.start(slot)
                self._places[slot] = _Place(slot)
        self._look_at = time.monotonic() + self._limits.look_s

    def _hand_out(self) -> None:
        now = time.monotonic()
        for place in list(self._places.values()):
            if place.job is None and place.ready_at <= now:
                job = _take_first(self._waiting, place.slot.kind)
                if job is not None:
                    place.job = job
                    self._crew.submit(place.slot, job)

    def _take(self, answer: Answer) -> None:
        place = self._places.get(answer.slot)
        if place is None or place.job is None:
            return
        job, place.job = place.job, None
        outcome = answer.outcome
        if outcome is None:
            self._leave(answer.slot)
            self._troubles.lost(job.key, answer.slot.node, answer.reason)
            sweep_tries_of(self._out, job.key, answer.slot.name)
            self._note(f"{job.file_stem}: its worker {answer.slot.name} is gone.")
            self._again(job, answer.slot.name)
        elif outcome.verdict == "broken":
            self._waiting.appendleft(job)
            self._broken(place, outcome)
        elif outcome.verdict == "crashed":
            self._troubles.crashed(job.key, outcome.error or "")
            self._again(job, outcome.worker)
        else:
            place.failures = 0
            self._end(job, outcome)

    def _again(self, job: ClipJob, worker: str) -> None:
        """Puts a job in line again, unless it has cost too much."""
        reason = self._troubles.too_much(job.key, {slot.node for slot in self._slots})
        if reason is None:
            self._waiting.append(job)
        else:
            self._end(job, Outcome("failed", worker, reason))

    def _broken(self, place: _Place, outcome: Outcome) -> None:
        """Lets a place rest whose worker cannot work, and gives it up in the end."""
        place.failures += 1
        place.ready_at = time.monotonic() + self._limits.restart_s
        self._note(f"{place.slot.name} cannot work: {outcome.error}")
        if place.failures >= self._limits.starts:
            self._leave(place.slot)
            self._given_up[place.slot] = outcome.error or ""

    def _leave(self, slot: Slot) -> None:
        """Ends the worker of a place, and looks soon for another."""
        self._crew.stop(slot)
        del self._places[slot]
        self._look_at = 0.0

    def _check_places(self) -> None:
        """Raises FleetError where jobs wait and no place can be had."""
        if self._places or self._slots - self._given_up.keys():
            self._empty_since = None
            return
        if self._slots:
            raise FleetError(f"No worker can make clips: {next(iter(self._given_up.values()))}")
        now = time.monotonic()
        if self._empty_since is None:
            self._empty_since = now
            self._note("There is no place for a worker; waiting for one ...")
        if now - self._empty_since > self._limits.empty_s:
            raise FleetError(f"Expected a place for a worker within {self._limits.empty_s:g} s, found none.")

    def _end(self, job: ClipJob, outcome: Outcome) -> None:
        self._troubles.forget(job.key)
        wish_path(self._out, job.key).unlink(missing_ok=True)
        if outcome.verdict != "done":
            pictures = (job.picture,) if job.picture else ()
            reason = outcome.error or outcome.verdict
            record = Record("failed", "", job.picture_digest, job.workflow_digest, pictures, (), reason, outcome.worker)
            self._records.note(job.key, record)
        self._tell(job, outcome)


def _take_first(waiting: deque[ClipJob], kind: str) -> ClipJob | None:
    """Takes the first job out of the line that this kind of GPU may make."""
    for number, job in enumerate(waiting):
        if job.kind in (None, kind):
            del waiting[number]
            return job
    return None


def _takes_one(wanted: Counter[str | None], kind: str) -> bool:
    """Whether one of the jobs is for this kind of GPU, which is then counted off."""
    found = next((each for each in (kind, None) if wanted[each] > 0), "")
    if found == "":
        return False
    wanted[found] -= 1
    return True

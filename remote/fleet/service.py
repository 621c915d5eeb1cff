"""A bounded queue of clips for requests that come at any time; knows no HTTP.

What is accepted has its record before the answer goes out, so that a restart loses nothing. The same picture and
workflow have the same key, and are one clip however often they are asked for.
"""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal

from ...common.errors import I2VError, InputError
from ..batch.job import Job
from ..batch.records import OPEN, RECORDS, Record, Records
from ..batch.workflow import Workflow
from .attempt import sweep
from .clip_job import ClipJob, Outcome
from .crew import Crew
from .dispatch import Dispatcher, FleetError
from .limits import Limits
from .shared_folder import PICTURES, save_picture, save_workflow

STEM = "clip"
STEP_S = 0.1
REST_S = 30.0
"""How long the queue rests where no worker can make clips."""

State = Literal["waiting", "running", "done", "failed"]


class QueueFullError(I2VError):
    """The queue has no room; `retry_after_s` is when it may have some."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(frozen=True)
class ClipState:
    """A clip of the service: its key, its state, the reason why it failed, and the paths of its files."""

    key: str
    state: State
    error: str | None = None
    files: tuple[Path, ...] = ()
    elapsed_s: float | None = None


class ClipService:
    """Takes requests from any thread, and has one of its own that hands them to the crew between `start` and `stop`."""

    def __init__(
        self, crew: Crew, out: Path, most_waiting: int, note: Callable[[str], None], limits: Limits | None = None
    ) -> None:
        self._crew, self._out, self._most_waiting, self._note = crew, out, most_waiting, note
        self._records = Records(out)
        self._dispatcher = Dispatcher(crew, out, self._ended, note, limits)
        self._lock = threading.Lock()
        self._known: dict[str, ClipJob] = {}
        self._running: frozenset[str] = frozenset()
        self._orders: queue.SimpleQueue[ClipJob | str] = queue.SimpleQueue()
        self._clip_s = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def start(self) -> None:
        """Goes on with what was accepted before, in its order, and begins to work."""
        sweep(self._out)
        place = self._out / RECORDS
        keys = sorted(self._records.keys(OPEN), key=lambda key: (place / f"{key}{OPEN}").stat().st_mtime_ns)
        for key in keys:
            record = self._records.find(key)
            if record is not None and record.state == "queued" and self._records.finished(key) is None:
                job = _job_of(self._out, key, record)
                self._known[key] = job
                self._orders.put(job)
        self._thread.start()

    def stop(self) -> None:
        """Ends the work; what is not done is made after the next start."""
        self._over.set()
        self._thread.join()

    def submit(self, workflow: Workflow, picture: bytes | None, suffix: str) -> ClipState:
        """Accepts a clip, or finds it.

        Raises QueueFullError where too many wait, and StorageError where it cannot be noted down.
        """
        digest = None if picture is None else sha256(picture).hexdigest()
        names = () if picture is None else (self._out / RECORDS / PICTURES / f"{digest}{suffix}",)
        job = ClipJob.of(Job(names, digest, workflow.digest, STEM))
        with self._lock:
            if job.key in self._known:
                return ClipState(job.key, self._state_of(job.key))
            record = self._records.finished(job.key)
            if record is not None:
                return self._done(job.key, record)
            self._check_room()
            self._known[job.key] = job
        try:
            save_workflow(self._out, workflow)
            if picture is not None:
                save_picture(self._out, picture, suffix)
            if self._records.is_done(job.key):
                self._records.forget(job.key)  # its files are gone
            pictures = tuple(path.name for path in names)
            self._records.note(job.key, Record("queued", "", digest, workflow.digest, pictures))
        except BaseException:
            with self._lock:
                del self._known[job.key]
            raise
        self._orders.put(job)
        return ClipState(job.key, "waiting")

    def find(self, key: str) -> ClipState | None:
        """The clip with that key, None where there is none."""
        with self._lock:
            if key in self._known:
                return ClipState(key, self._state_of(key))
        record = self._records.finished(key)
        if record is not None:
            return self._done(key, record)
        record = self._records.find(key)
        if record is None or record.state != "failed":
            return None
        return ClipState(key, "failed", record.error)

    def cancel(self, key: str) -> bool:
        """Takes a clip out of the queue, or ends it soon; returns whether it was waiting or running."""
        with self._lock:
            is_known = key in self._known
        if is_known:
            self._orders.put(key)
        return is_known

    def counts(self) -> dict[str, int]:
        """How many clips wait and run."""
        with self._lock:
            running = len(self._running & self._known.keys())
            return {"waiting": len(self._known) - running, "running": running, "room": self._most_waiting}

    def _check_room(self) -> None:
        running = len(self._running & self._known.keys())
        waiting = len(self._known) - running
        if waiting >= self._most_waiting:
            retry_s = max(1, math.ceil(self._clip_s / max(running, 1)))
            raise QueueFullError(f"The queue takes {self._most_waiting} clips, and {waiting} wait: try later.", retry_s)

    def _state_of(self, key: str) -> State:
        return "running" if key in self._running else "waiting"

    def _done(self, key: str, record: Record) -> ClipState:
        files = tuple(self._out / file.name for file in record.files)
        return ClipState(key, "done", None, files, record.elapsed_s)

    def _work(self) -> None:
        while not self._over.is_set():
            try:
                self._take_orders()
                self._dispatcher.step(STEP_S)
            except FleetError as error:
                self._note(f"{error} Trying again in {REST_S:g} s.")
                self._over.wait(REST_S)
                self._dispatcher.try_all_places()
            except I2VError as error:  # a full disk: the clips stay in line
                self._note(str(error))
                self._over.wait(1.0)
            self._running = frozenset(self._dispatcher.running())

    def _take_orders(self) -> None:
        while not self._orders.empty():
            order = self._orders.get()
            if isinstance(order, ClipJob):
                self._dispatcher.add(order)
            else:
                self._dispatcher.cancel(order)

    def _ended(self, job: ClipJob, outcome: Outcome) -> None:
        with self._lock:
            self._known.pop(job.key, None)
            if outcome.elapsed_s is not None and not outcome.was_there:
                self._clip_s = outcome.elapsed_s
        self._note(f"{job.key}: {outcome.verdict}{f': {outcome.error}' if outcome.error else ''}")


def _job_of(out: Path, key: str, record: Record) -> ClipJob:
    """The job that a record tells of."""
    names = tuple(out / RECORDS / PICTURES / name for name in record.pictures)
    job = ClipJob.of(Job(names, record.picture_digest, record.workflow_digest, STEM))
    if job.key != key:
        raise InputError(f"The record {key} should be of the clip {job.key}, and is not: remove it.")
    return job

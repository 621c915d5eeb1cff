"""The workers of a fleet as the dispatcher sees them, and those of one machine without Ray."""

from __future__ import annotations

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from .clip_job import ClipJob, Outcome
from .maker import WorkerSpec
from .worker import Worker


@dataclass(frozen=True)
class Slot:
    """A place for a worker: a GPU of a node, or some CPU cores; `kind` is the GPU's, `host` the node's name."""

    node: str
    number: int
    kind: str = "cpu"
    host: str = ""

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.host}-{self.node[:8]}/{self.kind}-{self.number}".lstrip("-")


@dataclass(frozen=True)
class Answer:
    """What came of a job in a slot; no outcome where the worker, or its node, is gone."""

    slot: Slot
    outcome: Outcome | None
    reason: str = ""


class Crew(Protocol):
    """Places that come and go, and a worker in each that is started."""

    def slots(self) -> Sequence[Slot]:
        """The places that there are now."""
        ...

    def start(self, slot: Slot) -> None:
        """Starts a worker in a place without one; it takes a job at once."""
        ...

    def submit(self, slot: Slot, job: ClipJob) -> None:
        """Hands a job to a worker that has none."""
        ...

    def wait(self, timeout_s: float) -> list[Answer]:
        """What has come since, at the latest after that many seconds."""
        ...

    def stop(self, slot: Slot) -> None:
        """Ends a worker, whatever it does."""
        ...

    def close(self) -> None:
        """Ends all workers."""
        ...


class LocalCrew:
    """So many workers of this machine, each driven by a thread."""

    def __init__(self, spec: WorkerSpec, count: int) -> None:
        self._spec = spec
        self._slots = [Slot("local", number) for number in range(count)]
        self._jobs: dict[Slot, queue.Queue[ClipJob | None]] = {}
        self._threads: dict[Slot, threading.Thread] = {}
        self._workers: dict[Slot, Worker] = {}
        self._answers: queue.Queue[Answer] = queue.Queue()

    def slots(self) -> Sequence[Slot]:
        """See `Crew`."""
        return self._slots

    def start(self, slot: Slot) -> None:
        """See `Crew`."""
        jobs = self._jobs[slot] = queue.Queue()
        worker = self._workers[slot] = Worker(self._spec, slot.name)
        thread = self._threads[slot] = threading.Thread(target=self._work, args=(slot, worker, jobs), daemon=True)
        thread.start()

    def submit(self, slot: Slot, job: ClipJob) -> None:
        """See `Crew`."""
        self._jobs[slot].put(job)

    def wait(self, timeout_s: float) -> list[Answer]:
        """See `Crew`."""
        answers = []
        try:
            answers.append(self._answers.get(timeout=timeout_s))
            while True:
                answers.append(self._answers.get_nowait())
        except queue.Empty:
            return answers

    def stop(self, slot: Slot) -> None:
        """See `Crew`; a clip that is being made is broken off."""
        worker = self._workers.pop(slot, None)
        if worker is not None:
            self._jobs.pop(slot).put(None)
            worker.close()
            self._threads.pop(slot).join(60)

    def close(self) -> None:
        """See `Crew`."""
        for slot in self._slots:
            self.stop(slot)

    def _work(self, slot: Slot, worker: Worker, jobs: queue.Queue[ClipJob | None]) -> None:
        while (job := jobs.get()) is not None:
            self._answers.put(Answer(slot, worker.make(job)))

"""Brings jobs through a ComfyUI server that may fail, vanish and come back: none is lost, none is done twice.

A job is noted in the ledger under an id of our own before the server is asked for it. Whatever
breaks then, the server's queue and history tell whether it has to be asked for again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ..comfyui.client import ComfyClient
from ..comfyui.errors import ServerError
from ..comfyui.event_socket import Backoff, EventSocket
from ..comfyui.messages import Event, Message, Preview, StatusText, elapsed_s, made_files, outcome
from .ledger import Job, Ledger, MadeFile
from .progress import JobResult, Report, Verdict
from .workflow import Workflow


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait for what, in seconds, and how often to try.

    Args:
        gone_s: how long the server may stay away before the queue is given up.
        look_s: between two looks at the server's queue while its messages come.
        look_soon_s: the same while none come, or while something is due.
        lost_s: how long a prompt may be neither in the queue nor in the history before it counts as lost.
        retry_s, longest_retry_s: the first and the longest wait between attempts to reach the server.
        answer_s: how long the socket's other end may take to show that it still hears.
        failures: how many requests for one and the same job may fail.
        crashes: how many times the server may vanish while it runs one and the same job.
        ahead: how many of our prompts are on the server at a time, so that it never waits for us.
    """

    gone_s: float = 600.0
    look_s: float = 10.0
    look_soon_s: float = 1.0
    lost_s: float = 3.0
    retry_s: float = 0.5
    longest_retry_s: float = 10.0
    answer_s: float = 5.0
    failures: int = 5
    crashes: int = 3
    ahead: int = 3


@dataclass
class _Flight:
    """A job on its way; `adopted` if an earlier run of the client has queued it."""

    job: Job
    number: int
    prompt_id: str = ""
    adopted: bool = False
    posted_on: int | None = None
    """Which opening of the socket heard of it first; None while the server has not confirmed it."""
    absent_since: float | None = None
    was_running: bool = False
    has_ended: bool = False
    failures: int = 0
    crashes: int = 0

    def begin(self, prompt_id: str, adopted: bool) -> None:
        """Starts anew under an id."""
        self.prompt_id, self.adopted = prompt_id, adopted
        self.posted_on, self.absent_since, self.was_running, self.has_ended = None, None, False, False


class _Contact:
    """Whether the server answers; raises ServerError once it has not for too long."""

    def __init__(self, retry: RetryPolicy) -> None:
        self.backoff = Backoff(retry.retry_s, retry.longest_retry_s)
        self.is_lost = False
        self._gone_s = retry.gone_s
        self._last = time.monotonic()

    def heard(self) -> None:
        self.is_lost, self._last = False, time.monotonic()
        self.backoff.reset()

    def failed(self, error: ServerError) -> bool:
        """Returns whether this is news."""
        if time.monotonic() - self._last > self._gone_s:
            raise ServerError(f"{error}, for {self._gone_s:g} s now: the same command goes on from here") from error
        was_lost, self.is_lost = self.is_lost, True
        self.backoff.fail()
        return not was_lost


class QueueRun:
    """One run over jobs, whose files go into `folder`; `run` does it."""

    def __init__(
        self,
        client: ComfyClient,
        workflow: Workflow,
        ledger: Ledger,
        folder: Path,
        report: Report,
        retry: RetryPolicy | None = None,
    ) -> None:
        self._client, self._workflow, self._ledger = client, workflow, ledger
        self._folder, self._report = folder, report
        self._retry = retry or RetryPolicy()
        self._contact = _Contact(self._retry)
        backoff = Backoff(self._retry.retry_s, self._retry.longest_retry_s)
        self._socket = EventSocket(client.url, ledger.client_id, backoff)
        self._waiting: list[_Flight] = []
        self._flying: list[_Flight] = []
        self._current: _Flight | None = None
        self._node_id: str | None = None
        self._results: list[JobResult] = []
        self._next_look = 0.0
        self._looked_on: tuple[int, bool] | None = None

    def run(self, jobs: Sequence[Job]) -> list[JobResult]:
        """Does what an earlier run has not done, and returns how each job ended, in the order of their ends.

        On Ctrl-C our prompts are taken from the server. On every other exception they stay there, and
        a later run finds them.

        Raises:
            ServerError: the server stayed away for too long.
            StorageError: a file could not be written.
        """
        for number, job in enumerate(jobs):
            self._enlist(_Flight(job, number))
        try:
            self._hear(self._socket.receive(0.0))  # opens it, so that nothing is missed
            while self._waiting or self._flying:
                self._top_up()
                self._hear(self._socket.receive(self._pause_s()))
                self._look()
        except KeyboardInterrupt:
            with suppress(ServerError):
                self._client.cancel_all(flight.prompt_id for flight in self._flying)
            raise
        finally:
            self._socket.close()
        return self._results

    def _enlist(self, flight: _Flight) -> None:
        """Skips a job that is done, follows one that an earlier run has queued, and puts the others in line."""
        entry = self._ledger.finished(flight.job)
        if entry is not None:
            files = tuple(self._folder / file.name for file in entry.files)
            self._tell(JobResult(flight.job, "skipped", entry.prompt_id, files))
            return
        entry = self._ledger.find(flight.job)
        if entry is not None and entry.state != "failed":
            flight.begin(entry.prompt_id, adopted=True)
            self._flying.append(flight)
        else:
            self._waiting.append(flight)

    def _top_up(self) -> None:
        # Only a look, which changes nothing on the server, tries whether it is back.
        while self._waiting and len(self._flying) < self._retry.ahead and not self._contact.is_lost:
            self._submit(self._waiting.pop(0))

    def _submit(self, flight: _Flight) -> None:
        flight.begin(str(uuid.uuid4()), adopted=False)
        self._ledger.queued(flight.job, flight.prompt_id)
        self._flying.append(flight)
        try:
            prompt = self._workflow.with_picture(self._upload(flight.job))
            prompt_id = self._client.queue(prompt, self._ledger.client_id, flight.prompt_id)
        except (InputError, OSError) as error:
            self._end(flight, "error", str(error))
        except ServerError as error:
            self._trouble(flight, error)
        else:
            if prompt_id != flight.prompt_id:  # a server that gives names of its own
                flight.prompt_id = prompt_id
                self._ledger.queued(flight.job, prompt_id)
            flight.posted_on = self._socket.opened if self._socket.is_open else None

    def _upload(self, job: Job) -> str | None:
        if not job.pictures:
            return None
        path = job.pictures[0]
        content = path.read_bytes()
        digest = sha256(content).hexdigest()
        if digest != job.picture_digest:
            raise InputError(f"{path} should be the picture that it was when the queue began, but it has changed")
        return self._client.upload_image(content, f"{job.stem}-{digest[:8]}{path.suffix}")

    def _trouble(self, flight: _Flight, error: ServerError) -> None:
        """A request for the job has failed: it is looked for later, and asked for again if it is not there."""
        flight.failures += 1
        if not error.may_pass or flight.failures >= self._retry.failures:
            with suppress(ServerError):
                self._client.cancel(flight.prompt_id)
            self._end(flight, "error", str(error))
        else:
            self._lose_contact(error)

    def _lose_contact(self, error: ServerError) -> None:
        if self._contact.failed(error):
            self._report.note(f"{error}; trying again ...")

    def _pause_s(self) -> float:
        """Seconds that the socket may be listened to before something else is due."""
        return min(max(self._wait_s(), 0.0), self._retry.look_s)

    def _wait_s(self) -> float:
        """Seconds until the next look."""
        return self._contact.backoff.remaining_s() if self._contact.is_lost else self._next_look - time.monotonic()

    def _hear(self, message: Message | None) -> None:
        if isinstance(message, Event):
            flight = next((flight for flight in self._flying if flight.prompt_id == message.prompt_id), None)
            if flight is not None:
                self._hear_event(flight, message)
        elif self._current is not None and isinstance(message, Preview):
            if message.prompt_id in (None, self._current.prompt_id):
                self._report.preview(self._current.job, message.image, message.media_type)
        elif self._current is not None and isinstance(message, StatusText) and message.node_id == self._node_id:
            self._report.detail(self._current.job, message.text)

    def _hear_event(self, flight: _Flight, event: Event) -> None:
        data = event.data
        if event.is_end:
            flight.has_ended, self._current, self._next_look = True, None, 0.0
            return
        if event.kind in ("execution_start", "executing", "progress"):
            flight.was_running, self._current = True, flight
        if event.kind == "executing":
            self._node_id = str(data["node"])
            self._report.stage(flight.job, self._workflow.title(self._node_id))
        elif event.kind == "progress":
            self._report.progress(flight.job, data.get("value", 0), data.get("max", 0))

    def _look(self) -> None:
        """Compares what flies with the server's queue and history, when it is time to."""
        state = (self._socket.opened, self._socket.is_open)
        if self._wait_s() > 0 and self._looked_on == state:
            return
        self._looked_on = state
        try:
            # The queue first: what ends after it was read is in the history.
            running, waiting = self._client.queued()
            if self._contact.is_lost:
                self._report.note(f"ComfyUI at {self._client.url} is there again.")
            self._contact.heard()
            for flight in tuple(self._flying):
                self._check(flight, running, waiting)
        except ServerError as error:
            self._lose_contact(error)
        soon = not self._socket.is_open or any(flight.absent_since or flight.has_ended for flight in self._flying)
        self._next_look = time.monotonic() + (self._retry.look_soon_s if soon else self._retry.look_s)

    def _check(self, flight: _Flight, running: set[str], waiting: set[str]) -> None:
        if flight.prompt_id in running or flight.prompt_id in waiting:
            flight.absent_since = None
            flight.was_running |= flight.prompt_id in running
            return
        history = self._client.find_history(flight.prompt_id)
        if history is None:
            self._miss(flight)
        else:
            self._settle(flight, history)

    def _miss(self, flight: _Flight) -> None:
        """The server does not know the prompt: it was restarted, never asked, told to forget, or is slow to tell."""
        now = time.monotonic()
        flight.absent_since = flight.absent_since or now
        if now - flight.absent_since < self._retry.lost_s:
            return
        if (
            not flight.has_ended
            and flight.posted_on == self._socket.opened
            and self._socket.answers(self._retry.answer_s)
        ):
            self._end(flight, "interrupted", "somebody took it out of the server's queue")
        else:
            self._again(flight)

    def _again(self, flight: _Flight) -> None:
        flight.crashes += flight.was_running
        if flight.crashes >= self._retry.crashes:
            self._end(flight, "error", f"the server went away {flight.crashes} times while it ran this")
            return
        self._leave(flight)
        self._waiting.append(flight)
        self._waiting.sort(key=lambda flight: flight.number)

    def _settle(self, flight: _Flight, history: dict[str, Any]) -> None:
        """The prompt has ended: fetch what it made, or tell why it made nothing."""
        status, error = outcome(history)
        if status != "success" and flight.adopted:
            self._again(flight)  # the interruption was that of the earlier run
        elif status != "success":
            self._end(flight, status, error)
        else:
            try:
                files = self._fetch(flight.job, history)
            except ServerError as trouble:
                self._trouble(flight, trouble)
                return
            self._ledger.done(flight.job, files)
            self._leave(flight)
            paths = tuple(self._folder / file.name for file in files)
            self._tell(JobResult(flight.job, "done", flight.prompt_id, paths, elapsed_s=elapsed_s(history)))

    def _fetch(self, job: Job, history: dict[str, Any]) -> tuple[MadeFile, ...]:
        made = []
        for number, file in enumerate(made_files(history["outputs"]), start=1):
            count = f"-{number}" if number > 1 else ""
            name = f"{job.file_stem}{count}{file.suffix}"
            made.append(MadeFile(name, self._client.download(file, self._folder / name)))
        return tuple(made)

    def _end(self, flight: _Flight, verdict: Verdict, error: str | None) -> None:
        self._ledger.failed(flight.job, error or verdict)
        self._leave(flight)
        self._tell(JobResult(flight.job, verdict, flight.prompt_id, error=error))

    def _leave(self, flight: _Flight) -> None:
        self._flying.remove(flight)
        if self._current is flight:
            self._current = None

    def _tell(self, result: JobResult) -> None:
        self._results.append(result)
        self._report.result(result)

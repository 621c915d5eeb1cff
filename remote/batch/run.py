"""Brings jobs through a ComfyUI server that may fail, vanish and come back: none is lost, none is done twice.

A job is noted in the ledger under an id of our own before the server is asked for it. After any
failure, the server's queue and history show whether the job has to be queued again.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ..comfyui.client import ComfyClient
from ..comfyui.errors import ServerError
from ..comfyui.event_socket import Backoff, EventSocket
from ..comfyui.messages import Message, elapsed_s, outcome
from .in_flight import Contact, InFlightJob, RetryPolicy, Watcher, fetch, upload
from .job import Job
from .ledger import Ledger
from .progress import JobResult, Report, Verdict
from .workflow import Workflow


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
        self._contact = Contact(self._retry, report)
        backoff = Backoff(self._retry.retry_s, self._retry.longest_retry_s)
        self._socket = EventSocket(client.address, ledger.client_id, backoff)
        self._waiting: list[InFlightJob] = []
        self._in_flight: list[InFlightJob] = []
        self._watcher = Watcher(report, workflow)
        self._results: list[JobResult] = []
        self._next_poll = 0.0
        self._polled_on: tuple[int, bool] | None = None

    def run(self, jobs: Sequence[Job]) -> list[JobResult]:
        """Runs the jobs that an earlier run has not done, and returns each job's result, in the order of their ends.

        On Ctrl-C our prompts are taken from the server. On every other exception they stay there, and
        a later run finds them.

        Raises:
            ServerError: the server stayed away for too long.
            StorageError: a file could not be written.
        """
        for number, job in enumerate(jobs):
            self._add(InFlightJob(job, number))
        try:
            self._take(self._socket.receive(0.0))  # opens it, so that nothing is missed
            while self._waiting or self._in_flight:
                # Only a poll, which changes nothing on the server, tries whether it is back.
                while self._waiting and len(self._in_flight) < self._retry.ahead and not self._contact.is_lost:
                    self._submit(self._waiting.pop(0))
                self._take(self._socket.receive(min(max(self._wait_s(), 0.0), self._retry.poll_s)))
                self._poll()
        except KeyboardInterrupt:
            with suppress(ServerError):
                self._client.cancel_all(flight.prompt_id for flight in self._in_flight)
            raise
        finally:
            self._socket.close()
        return self._results

    def _add(self, flight: InFlightJob) -> None:
        """Skips a job that is done, follows one that an earlier run has queued, and puts the others in line."""
        entry = self._ledger.finished(flight.job)
        if entry is not None:
            files = tuple(self._folder / file.name for file in entry.files)
            self._note(JobResult(flight.job, "skipped", entry.prompt_id, files))
            return
        entry = self._ledger.find(flight.job)
        if entry is not None and entry.state != "failed":
            flight.begin(entry.prompt_id, adopted=True)
            self._in_flight.append(flight)
        else:
            self._waiting.append(flight)

    def _submit(self, flight: InFlightJob) -> None:
        flight.begin(str(uuid.uuid4()), adopted=False)
        self._ledger.queued(flight.job, flight.prompt_id)
        self._in_flight.append(flight)
        try:
            prompt = self._workflow.with_picture(upload(self._client, flight.job))
            extra_data = self._workflow.extra_data
            prompt_id = self._client.queue(prompt, self._ledger.client_id, flight.prompt_id, extra_data)
        except (InputError, OSError) as error:
            self._end(flight, "error", str(error))
        except ServerError as error:
            self._trouble(flight, error)
        else:
            if prompt_id != flight.prompt_id:  # a server that gives names of its own
                flight.prompt_id = prompt_id
                self._ledger.queued(flight.job, prompt_id)
            flight.posted_on = self._socket.opened if self._socket.is_open else None

    def _trouble(self, flight: InFlightJob, error: ServerError, *, is_gone: bool = False) -> None:
        """A request for the job has failed: it is looked for later, and asked for again if it is not there.

        Files that are gone on the server are made again, for which it has to forget what it keeps.
        """
        flight.failures += 1
        if is_gone and flight.failures < self._retry.failures:
            self._report.note(f"{flight.job.label}: what it made is gone on the server, and is made again ...")
            with suppress(ServerError):
                self._client.free(unload_models=False)
            flight.was_running = False  # it has ended
            self._again(flight)
        elif not error.may_pass or flight.failures >= self._retry.failures:
            with suppress(ServerError):
                self._client.cancel(flight.prompt_id)
            self._end(flight, "error", str(error))
        else:
            self._contact.failed(error)

    def _take(self, message: Message | None) -> None:
        """Shows a message; polls at once where it ends a prompt."""
        if self._watcher.take(message, self._in_flight):
            self._next_poll = 0.0

    def _wait_s(self) -> float:
        """Seconds until the next look."""
        return self._contact.backoff.remaining_s() if self._contact.is_lost else self._next_poll - time.monotonic()

    def _poll(self) -> None:
        """Compares jobs in flight with the server's queue and history, when it is time to."""
        state = (self._socket.opened, self._socket.is_open)
        if self._wait_s() > 0 and self._polled_on == state:
            return
        self._polled_on = state
        try:
            # The queue first: a prompt that ends after it was read is in the history.
            running, waiting = self._client.queued()
            if self._contact.is_lost:
                self._report.note(f"ComfyUI at {self._client.url} is there again.")
            self._contact.heard()
            for flight in tuple(self._in_flight):
                self._reconcile(flight, running, waiting)
        except ServerError as error:
            self._contact.failed(error)
        soon = not self._socket.is_open or any(flight.absent_since or flight.has_ended for flight in self._in_flight)
        self._next_poll = time.monotonic() + (self._retry.poll_soon_s if soon else self._retry.poll_s)

    def _reconcile(self, flight: InFlightJob, running: set[str], waiting: set[str]) -> None:
        if flight.prompt_id in running or flight.prompt_id in waiting:
            flight.absent_since = None
            flight.was_running |= flight.prompt_id in running
            return
        history = self._client.find_history(flight.prompt_id)
        if history is None:
            self._not_found(flight)
        else:
            self._finish(flight, history)

    def _not_found(self, flight: InFlightJob) -> None:
        """Handles a prompt unknown to the server: it was restarted, had no request, dropped the prompt, or is slow."""
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

    def _again(self, flight: InFlightJob) -> None:
        flight.crashes += flight.was_running
        if flight.crashes >= self._retry.crashes:
            self._end(flight, "error", f"the server went away {flight.crashes} times while it ran this")
            return
        self._leave(flight)
        self._waiting.append(flight)
        self._waiting.sort(key=lambda flight: flight.number)

    def _finish(self, flight: InFlightJob, history: dict[str, Any]) -> None:
        """Ends a prompt: fetches its files, or reports why it made none."""
        status, error = outcome(history)
        if status != "success" and flight.adopted:
            self._again(flight)  # the interruption was that of the earlier run
        elif status != "success":
            self._end(flight, status, error)
        else:
            try:
                files = fetch(self._client, flight.job, history, self._folder)
            except ServerError as trouble:
                self._trouble(flight, trouble, is_gone=trouble.status == 404)
                return
            self._ledger.done(flight.job, files)
            self._leave(flight)
            paths = tuple(self._folder / file.name for file in files)
            self._note(JobResult(flight.job, "done", flight.prompt_id, paths, elapsed_s=elapsed_s(history)))

    def _end(self, flight: InFlightJob, verdict: Verdict, error: str | None) -> None:
        self._ledger.failed(flight.job, error or verdict)
        self._leave(flight)
        self._note(JobResult(flight.job, verdict, flight.prompt_id, error=error))

    def _leave(self, flight: InFlightJob) -> None:
        self._in_flight.remove(flight)
        self._watcher.leave(flight)

    def _note(self, result: JobResult) -> None:
        self._results.append(result)
        self._report.result(result)

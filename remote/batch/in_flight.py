"""A job on the server: the policy of retries, its state, its messages, its picture and its files."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from ..comfyui.client import ComfyClient
from ..comfyui.errors import ServerError
from ..comfyui.event_socket import Backoff
from ..comfyui.messages import Event, Message, Preview, StatusText, made_files
from .job import Job, MadeFile
from .progress import Report
from .workflow import Workflow


@dataclass(frozen=True)
class RetryPolicy:
    """Waiting times in seconds, and numbers of attempts.

    Args:
        gone_s: how long the server may stay away before the queue is given up.
        poll_s: between two looks at the server's queue while its messages come.
        poll_soon_s: the same while none come, or while something is due.
        lost_s: how long a prompt may be neither in the queue nor in the history before it counts as lost.
        retry_s, longest_retry_s: the first and the longest wait between attempts to reach the server.
        answer_s: how long the socket's other end may take to answer a ping.
        failures: how many requests for one and the same job may fail.
        crashes: how many times the server may vanish while it runs one and the same job.
        ahead: how many of our prompts are on the server at a time, so that it never waits for us.
    """

    gone_s: float = 600.0
    poll_s: float = 10.0
    poll_soon_s: float = 1.0
    lost_s: float = 3.0
    retry_s: float = 0.5
    longest_retry_s: float = 10.0
    answer_s: float = 5.0
    failures: int = 5
    crashes: int = 3
    ahead: int = 3


@dataclass
class InFlightJob:
    """A job on its way; `adopted` if an earlier run of the client has queued it."""

    job: Job
    number: int
    prompt_id: str = ""
    adopted: bool = False
    posted_on: int | None = None
    """Number of the socket's opening when the server confirmed the job; None before that, or without a socket."""
    absent_since: float | None = None
    was_running: bool = False
    has_ended: bool = False
    failures: int = 0
    crashes: int = 0

    def begin(self, prompt_id: str, adopted: bool) -> None:
        """Starts anew under an id."""
        self.prompt_id, self.adopted = prompt_id, adopted
        self.posted_on, self.absent_since, self.was_running, self.has_ended = None, None, False, False


class Contact:
    """Whether the server answers; raises ServerError once it has not for too long."""

    def __init__(self, retry: RetryPolicy, report: Report) -> None:
        self._report = report
        self.backoff = Backoff(retry.retry_s, retry.longest_retry_s)
        self.is_lost = False
        self._gone_s = retry.gone_s
        self._last = time.monotonic()

    def heard(self) -> None:
        """The server has answered."""
        self.is_lost, self._last = False, time.monotonic()
        self.backoff.reset()

    def failed(self, error: ServerError) -> None:
        """Waits longer before the next attempt; reports the first failure after an answer."""
        if time.monotonic() - self._last > self._gone_s:
            raise ServerError(f"{error}, for {self._gone_s:g} s now: the same command goes on from here") from error
        if not self.is_lost:
            self._report.note(f"{error}; trying again ...")
        self.is_lost = True
        self.backoff.fail()


class Watcher:
    """Follows the server's messages, and shows the running job in the report."""

    def __init__(self, report: Report, workflow: Workflow) -> None:
        self._report, self._workflow = report, workflow
        self._current: InFlightJob | None = None
        self._node_id: str | None = None

    def take(self, message: Message | None, in_flight: Sequence[InFlightJob]) -> bool:
        """Shows a message; returns whether it ends a prompt of ours."""
        if isinstance(message, Event):
            flight = next((flight for flight in in_flight if flight.prompt_id == message.prompt_id), None)
            return flight is not None and self._take_event(flight, message)
        if self._current is not None and isinstance(message, Preview):
            if message.prompt_id in (None, self._current.prompt_id):
                self._report.preview(self._current.job, message.image, message.media_type)
        elif self._current is not None and isinstance(message, StatusText) and message.node_id == self._node_id:
            self._report.detail(self._current.job, message.text)
        return False

    def leave(self, flight: InFlightJob) -> None:
        """Ends the display of a job that is over."""
        if self._current is flight:
            self._current = None

    def _take_event(self, flight: InFlightJob, event: Event) -> bool:
        data = event.data
        if event.is_end:
            flight.has_ended, self._current = True, None
            return True
        if event.kind in ("execution_start", "executing", "progress"):
            flight.was_running, self._current = True, flight
        if event.kind == "executing":
            self._node_id = str(data["node"])
            self._report.stage(flight.job, self._workflow.title(self._node_id))
        elif event.kind == "progress":
            self._report.progress(flight.job, data.get("value", 0), data.get("max", 0))
        return False


def upload(client: ComfyClient, job: Job) -> str | None:
    """Uploads a job's picture, if it has one; returns its name there. Raises InputError when the file has changed."""
    if not job.pictures:
        return None
    path = job.pictures[0]
    content = path.read_bytes()
    digest = sha256(content).hexdigest()
    if digest != job.picture_digest:
        raise InputError(f"{path} should be the picture that it was when the queue began, but it has changed")
    return client.upload_image(content, f"{job.stem}-{digest[:8]}{path.suffix}")


def fetch(client: ComfyClient, job: Job, history: dict[str, Any], folder: Path) -> tuple[MadeFile, ...]:
    """Downloads the files that a prompt has made, by the job's own name."""
    made = []
    for number, file in enumerate(made_files(history["outputs"]), start=1):
        count = f"-{number}" if number > 1 else ""
        name = f"{job.file_stem}{count}{file.suffix}"
        made.append(MadeFile(name, client.download(file, folder / name)))
    return tuple(made)

"""State of each job of `run.py queue`, in the records that a later run goes on from."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...common.atomic_file import atomic_file
from ...common.errors import StorageError
from .job import Job, MadeFile
from .records import RECORDS, Record, Records, record_of

OLD_LEDGER = "queue.json"
"""The one file for all jobs that earlier versions kept; it is read, and no longer written."""
CLIENT = "client.json"
LOCK = ".queue.lock"


class Ledger:
    """The records of the jobs of `folder`.

    `client_id` names the runs' socket, so that a later run gets messages on prompts that an earlier one queued.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._records = Records(folder)
        path = folder / OLD_LEDGER
        old = _read(path)
        self._old = {key: _entry(path, value) for key, value in old.get("jobs", {}).items()}
        self.client_id: str = old.get("client_id") or _client_id(folder / RECORDS / CLIENT)

    def find(self, job: Job) -> Record | None:
        """Record of a job, None without one."""
        return self._records.find(job.key) or self._old.get(job.key)

    def finished(self, job: Job) -> Record | None:
        """Record of a job that is done and whose files are still there with their sizes; else None."""
        return self._records.finished(job.key) or self._finished_before(job)

    def queued(self, job: Job, prompt_id: str) -> None:
        """Notes a run of the job, before the request to the server: a crash in between loses no job."""
        pictures = tuple(str(path) for path in job.pictures)
        self._records.note(job.key, Record("queued", prompt_id, job.picture_digest, job.workflow_digest, pictures))

    def done(self, job: Job, files: tuple[MadeFile, ...]) -> None:
        """Notes that the job is done, with its files in place."""
        record = replace(self._known(job), state="done", files=files, error=None)
        self._records.replace_commit(job.key, record)

    def failed(self, job: Job, error: str) -> None:
        """Notes that the job's run failed; a later run tries again."""
        self._records.note(job.key, replace(self._known(job), state="failed", error=error))

    def _known(self, job: Job) -> Record:
        record = self.find(job)
        if record is None:
            raise StorageError(f"{self._folder / RECORDS} should have a record of {job.label}, but has lost it.")
        return record

    def _finished_before(self, job: Job) -> Record | None:
        """An earlier version's record that the job is done, while nothing newer is known."""
        record = self._old.get(job.key)
        if record is None or record.state != "done" or self._records.find(job.key) is not None:
            return None
        sizes = {self._folder / file.name: file.size_bytes for file in record.files}
        return record if all(path.is_file() and path.stat().st_size == size for path, size in sizes.items()) else None


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Makes the folder if need be, and keeps a second queue out of it; raises StorageError if there is one.

    What a killed queue left half-written is removed.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK, timeout=0)
        lock.acquire()
    except Timeout as error:
        raise StorageError(f"{folder} should be free, but another queue is at work in it.") from error
    except OSError as error:
        raise StorageError(f"{folder} should be a folder to write to: {error.strerror or error}.") from error
    try:
        Records(folder).remove_half_written()
        yield
    finally:
        lock.release()


def _client_id(path: Path) -> str:
    """The name in the file, which is made where it is missing."""
    try:
        return str(json.loads(path.read_text("utf-8"))["client_id"])
    except FileNotFoundError:
        name = uuid.uuid4().hex
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path) from error
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{path.parent} should be a folder to write to: {error.strerror or error}.") from error
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps({"client_id": name}), "utf-8")
    return name


def _read(path: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise _damaged(path) from error
    if not isinstance(content, dict) or content.get("version") != 1 or not isinstance(content.get("jobs"), dict):
        raise _damaged(path)
    return content


def _entry(path: Path, value: Any) -> Record:
    try:
        return record_of(value)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> StorageError:
    return StorageError(f"{path} should tell what an earlier queue has done, but it cannot be read: move it away.")

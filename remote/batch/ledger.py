"""State of each job of a queue, in the file that a later run goes on from."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from ...common.atomic_file import atomic_file
from ...common.errors import StorageError
from ..comfyui.messages import printable

LEDGER = "queue.json"
LOCK = ".queue.lock"
NAME_DIGITS = 8
"""Number of digits of a job's key in the names of its files."""

State = Literal["queued", "done", "failed"]


@dataclass(frozen=True)
class Job:
    """One picture, or none, through one workflow; `pictures` has several paths where the same picture has."""

    pictures: tuple[Path, ...]
    picture_digest: str | None
    workflow_digest: str
    stem: str

    @property
    def key(self) -> str:
        """Digest of the picture and the workflow, the same for every path of the picture."""
        return sha256(f"{self.picture_digest} {self.workflow_digest}".encode()).hexdigest()

    @property
    def file_stem(self) -> str:
        """The name of its files, their suffix aside: two jobs never share one."""
        return f"{self.stem}-{self.key[:NAME_DIGITS]}"

    @property
    def label(self) -> str:
        """Name of the job in reports."""
        return printable(self.pictures[0].name if self.pictures else self.stem)


@dataclass(frozen=True)
class MadeFile:
    """A file in the folder, with its size when complete."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class Entry:
    """State of one job; `prompt_id` is the server's name for its latest run."""

    state: State
    prompt_id: str
    picture_digest: str | None
    workflow_digest: str
    pictures: tuple[str, ...]
    files: tuple[MadeFile, ...] = ()
    error: str | None = None


class Ledger:
    """The entries by job key, in a file of `folder` that is rewritten as a whole at each change.

    `client_id` names the runs' socket, so that a later run gets messages on prompts that an earlier one queued.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / LEDGER
        content = _read(self._path)
        self.client_id: str = content.get("client_id") or uuid.uuid4().hex
        self._entries = {key: _entry(self._path, value) for key, value in content.get("jobs", {}).items()}

    def find(self, job: Job) -> Entry | None:
        """Entry of a job, None without one."""
        return self._entries.get(job.key)

    def finished(self, job: Job) -> Entry | None:
        """Entry of a job that is done and whose files are still there with their sizes; else None."""
        entry = self.find(job)
        if entry is None or entry.state != "done":
            return None
        return entry if all(_is_whole(self._folder / file.name, file.size_bytes) for file in entry.files) else None

    def queued(self, job: Job, prompt_id: str) -> None:
        """Notes a run of the job, before the request to the server: a crash in between loses no job."""
        pictures = tuple(str(path) for path in job.pictures)
        self._write(job, Entry("queued", prompt_id, job.picture_digest, job.workflow_digest, pictures))

    def done(self, job: Job, files: tuple[MadeFile, ...]) -> None:
        """Notes that the job is done, with its files in place."""
        self._write(job, replace(self._entries[job.key], state="done", files=files))

    def failed(self, job: Job, error: str) -> None:
        """Notes that the job's run failed; a later run tries again."""
        self._write(job, replace(self._entries[job.key], state="failed", error=error))

    def _write(self, job: Job, entry: Entry) -> None:
        self._entries[job.key] = entry
        jobs = {key: asdict(value) for key, value in self._entries.items()}
        content = {"version": 1, "client_id": self.client_id, "jobs": jobs}
        with atomic_file(self._path) as temporary:
            temporary.write_text(json.dumps(content, indent=1), "utf-8")


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Makes the folder if need be, and keeps a second queue out of it; raises StorageError if there is one."""
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
        yield
    finally:
        lock.release()


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


def _entry(path: Path, value: Any) -> Entry:
    try:
        files = tuple(MadeFile(str(file["name"]), int(file["size_bytes"])) for file in value["files"])
        return Entry(**{**value, "files": files, "pictures": tuple(value["pictures"])})
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> StorageError:
    return StorageError(f"{path} should tell what an earlier queue has done, but it cannot be read: move it away.")


def _is_whole(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes

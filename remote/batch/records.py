"""What became of each job: one small file a job, in a folder beside the outputs.

Only the record of the job at hand is written, so that 10,000 jobs cost 10,000 small files and no list grows. A job that
is done has its commit, `KEY.json`, which the first to finish publishes and nobody replaces; its open record,
`KEY.open.json`, tells of one that is queued or has failed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ...common.atomic_file import atomic_file, publish_first, remove_left_temporaries
from ...common.errors import StorageError
from ..comfyui.messages import printable
from .job import MadeFile

RECORDS = ".jobs"
DONE, OPEN = ".json", ".open.json"
KEY_DIGITS = 64
MOST_TEXT_BYTES = 240
"""Of a sentence or a path in a record, which stays below 1 KB."""
HALF_WRITTEN_S = 3600.0
"""How long nobody has written to a file that is not whole, until it is removed."""

State = Literal["queued", "done", "failed"]


@dataclass(frozen=True)
class Record:
    """State of one job; `prompt_id` is the server's name for its latest run, `worker` who made it in a fleet."""

    state: State
    prompt_id: str
    picture_digest: str | None
    workflow_digest: str
    pictures: tuple[str, ...]
    files: tuple[MadeFile, ...] = ()
    error: str | None = None
    worker: str | None = None
    elapsed_s: float | None = None

    def as_text(self) -> str:
        """The record as JSON, with long texts shortened."""
        first = tuple(shortened(name) for name in self.pictures[:1])
        short = replace(self, pictures=first, error=self.error and shortened(self.error))
        content = {"version": 2, **asdict(short)}
        text = json.dumps(content, ensure_ascii=False)
        return text if text.isascii() or printable(text) == text else json.dumps(content)  # a name of any bytes


class Records:
    """The records of the jobs whose files lie in `folder`; nothing is kept in memory."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / RECORDS

    def find(self, key: str) -> Record | None:
        """The job's latest record, None without one; raises StorageError for one that cannot be read."""
        return read_record(self.place / f"{key}{OPEN}") or read_record(self.place / f"{key}{DONE}")

    def finished(self, key: str) -> Record | None:
        """The commit of a job that is done and whose files are still there with their sizes; else None."""
        record = read_record(self.place / f"{key}{DONE}")
        if record is None or not all(_is_whole(self.folder / file.name, file.size_bytes) for file in record.files):
            return None
        return record

    def is_done(self, key: str) -> bool:
        """Whether there is a commit, whatever became of its files."""
        return (self.place / f"{key}{DONE}").is_file()

    def keys(self, suffix: str = DONE) -> Iterator[str]:
        """The keys that have a record with the suffix, by one listing of the folder."""
        length = KEY_DIGITS + len(suffix)
        try:
            with os.scandir(self.place) as entries:
                for entry in entries:
                    if len(entry.name) == length and entry.name.endswith(suffix):
                        yield entry.name[:KEY_DIGITS]
        except FileNotFoundError:
            return

    def note(self, key: str, record: Record) -> None:
        """Writes the open record of a job that is not done."""
        self._make_place()
        with atomic_file(self.place / f"{key}{OPEN}") as temporary:
            temporary.write_text(record.as_text(), "utf-8")

    def commit(self, key: str, record: Record) -> bool:
        """Notes that a job is done, with its files in place; returns False where somebody was first."""
        self._make_place()
        path = self.place / f"{key}{DONE}"
        is_first = publish_first(path, lambda temporary: temporary.write_text(record.as_text(), "utf-8"))
        self.close(key)
        return is_first

    def replace_commit(self, key: str, record: Record) -> None:
        """The same for whoever has the folder alone: its commit takes the place of an older one."""
        self._make_place()
        with atomic_file(self.place / f"{key}{DONE}") as temporary:
            temporary.write_text(record.as_text(), "utf-8")
        self.close(key)

    def close(self, key: str) -> None:
        """Removes the open record."""
        (self.place / f"{key}{OPEN}").unlink(missing_ok=True)

    def forget(self, key: str) -> None:
        """Removes the commit of a job whose files are gone or changed, and what is left of them."""
        record = read_record(self.place / f"{key}{DONE}")
        for file in record.files if record else ():
            (self.folder / file.name).unlink(missing_ok=True)
        (self.place / f"{key}{DONE}").unlink(missing_ok=True)

    def remove_half_written(self) -> None:
        """Removes the temporary files of an hour ago and more, beside the outputs and the records."""
        below = self.place.iterdir() if self.place.is_dir() else ()
        for folder in (self.folder, self.place, *(path for path in below if path.is_dir())):
            remove_left_temporaries(folder, HALF_WRITTEN_S)

    def _make_place(self) -> None:
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.place} should be a folder to write to: {error.strerror or error}.") from error


def read_record(path: Path) -> Record | None:
    """The record in a file, None where there is none; raises StorageError for one that cannot be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
        if content.pop("version") != 2:
            raise ValueError
        return record_of(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StorageError(
            f"{path} should tell what became of a job, but it cannot be read: remove it, and the job is made again."
        ) from error


def record_of(content: dict[str, Any]) -> Record:
    """The record that a JSON object describes; raises KeyError, TypeError or ValueError where it describes none."""
    files = tuple(MadeFile(str(file["name"]), int(file["size_bytes"])) for file in content["files"])
    return Record(**{**content, "files": files, "pictures": tuple(content["pictures"])})


def shortened(text: str, most_bytes: int = MOST_TEXT_BYTES) -> str:
    """The text, or its beginning and a sign that something is missing."""
    encoded = printable(text).encode()
    return encoded.decode() if len(encoded) <= most_bytes else encoded[: most_bytes - 3].decode("utf-8", "ignore") + "…"


def _is_whole(path: Path, size_bytes: int) -> bool:
    return path.is_file() and path.stat().st_size == size_bytes

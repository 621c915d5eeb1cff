"""A try at a job: a folder that shows that it is alive, takes its files, and can be asked to stop.

`.jobs/tries/KEY.RANDOM/` holds `try.json`, whose time is renewed while the worker lives: from any machine, a try that
has stopped to do so is lost. `.jobs/cancelled/KEY` asks whoever makes the clip to stop.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ...common.errors import StorageError
from ..batch.records import KEY_DIGITS, RECORDS, Records

TRIES, CANCELLED, BEAT = "tries", "cancelled", "try.json"
BEAT_S = 5.0
"""Between two signs of life."""
LOOK_S = 0.5
"""Between two looks for a wish to stop."""
LOST_S = 60.0
"""How old the last sign of life of a try is that counts as lost."""


@dataclass(frozen=True)
class SeenTry:
    """A try in the folder, with the seconds since its last sign of life."""

    key: str
    worker: str
    silent_s: float
    path: Path

    @property
    def is_lost(self) -> bool:
        """Whether its worker is gone."""
        return self.silent_s > LOST_S


class Attempt:
    """The try of a worker at a job, for the length of a `with`; calls `stop` again and again once it is to end."""

    def __init__(self, folder: Path, key: str, worker: str, stop: Callable[[], object]) -> None:
        self.folder = folder / RECORDS / TRIES / f"{key}.{secrets.token_hex(8)}"
        self._wish = wish_path(folder, key)
        self._worker, self._stop = worker, stop
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._live, daemon=True)

    def __enter__(self) -> Attempt:
        try:
            self.folder.mkdir(parents=True)
            (self.folder / BEAT).write_text(json.dumps({"worker": self._worker, "pid": os.getpid()}), "utf-8")
        except OSError as error:
            raise StorageError(f"{self.folder} should be a folder to write to: {error.strerror or error}.") from error
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def is_cancelled(self) -> bool:
        """Whether somebody has asked for its end."""
        return self._wish.exists()

    def _live(self) -> None:
        beat = time.monotonic()
        while not self._over.wait(LOOK_S):
            if time.monotonic() - beat >= BEAT_S:
                beat = time.monotonic()
                with suppress(OSError):
                    os.utime(self.folder / BEAT)
            if self.is_cancelled:
                self._stop()


def wish_path(folder: Path, key: str) -> Path:
    """The file that asks for a job's end."""
    return folder / RECORDS / CANCELLED / key


def ask_to_stop(folder: Path, key: str) -> None:
    """Asks whoever makes the clip to stop, on whatever machine."""
    path = wish_path(folder, key)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def seen_tries(folder: Path) -> Iterator[SeenTry]:
    """The tries that have not ended, and those whose worker was killed."""
    place, now = folder / RECORDS / TRIES, time.time()
    for path in sorted(place.iterdir()) if place.is_dir() else ():
        with suppress(OSError, ValueError, KeyError):  # one that ends meanwhile
            beat = path / BEAT
            silent_s = max(now - beat.stat().st_mtime, 0.0)
            yield SeenTry(path.name[:KEY_DIGITS], json.loads(beat.read_text("utf-8"))["worker"], silent_s, path)


def sweep(folder: Path) -> None:
    """Removes what killed processes have left: the tries that count as lost, and half-written files of an hour ago."""
    for each in seen_tries(folder):
        if each.is_lost:
            shutil.rmtree(each.path, ignore_errors=True)
    Records(folder).remove_half_written()


def sweep_tries_of(folder: Path, key: str, worker: str) -> None:
    """Removes the tries that a worker which is gone had begun at a job."""
    for each in seen_tries(folder):
        if (each.key, each.worker) == (key, worker):
            shutil.rmtree(each.path, ignore_errors=True)

"""Digests of files of gigabytes, remembered by the file system's description of each file.

Opening a checkpoint needs the digest of its weights, and reading them takes seconds to minutes. A file that has
kept its path, size, times and inode has kept its bytes; its digest is then taken from a table, which is kept as
long as the process and, where a path was given, on disk too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from ....common.atomic_file import atomic_file
from ....common.errors import CheckpointError, StorageError

log = logging.getLogger(__name__)

Piece = str | Path
"""Piece of a digest's content: a text, or the bytes of a file."""
Tell = Callable[[int], None]
"""Callback with the number of bytes read since the last call; may raise to stop."""
FRESH_S = 2.0
"""A file changed so lately may change again without another time: some file systems count in steps of this."""
MOST = 1000
"""Digests in a table: those of some hundred checkpoints."""
MOST_BYTES = 1 << 20
"""Of a table on disk, of which `MOST` digests take a fifth."""
READERS = 4
"""Files that are read at a time."""
_BLOCK_BYTES = 4 << 20
_POLL_S = 0.25
_DIGEST = re.compile(r"[0-9a-f]{64}")


class DigestTable:
    """SHA-256 by the texts and the files that it was taken over; for any number of threads and processes."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}
        self._path: Path | None = None
        self._lock = threading.Lock()

    def keep_in(self, path: Path) -> None:
        """Keeps the table in a file for this and later processes; the file need not exist."""
        with self._lock:
            self._path = path

    @property
    def known(self) -> dict[str, str]:
        """A copy of the digests that this process knows, to be learned by another one."""
        with self._lock:
            return dict(self._known)

    def learn(self, known: Mapping[str, str]) -> None:
        """Takes over what another process of this machine knows."""
        with self._lock:
            self._known.update(known)

    def find(self, pieces: Sequence[Piece]) -> str | None:
        """The digest over the pieces, unless one of the files was never read as it is now."""
        name = _name(pieces)
        with self._lock:
            if name not in self._known:
                self._known = {**self._stored(), **self._known}
            return self._known.get(name)

    def take(self, pieces: Sequence[Piece], tell: Tell = lambda _: None) -> str:
        """The digest over the pieces, read now; raises CheckpointError for a file that cannot be read."""
        before, sha = _name(pieces), hashlib.sha256()
        for piece in pieces:
            if isinstance(piece, str):
                sha.update(piece.encode())
            else:
                _add_file(sha, piece, tell)
        digest = sha.hexdigest()
        if _name(pieces) == before and not any(map(_is_fresh, _files(pieces))):
            self._remember(before, digest)
        return digest

    def _remember(self, name: str, digest: str) -> None:
        """Keeps a digest; a disk that refuses costs a line in the log, and a reading in the next process."""
        with self._lock:
            # Digests that another process has stored meanwhile stay; of two that write at once one is to read again.
            known = list({**self._stored(), **self._known, name: digest}.items())
            self._known = dict(known[-MOST:])
            if self._path is None:
                return
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(self._path) as temporary:
                    temporary.write_text(json.dumps(self._known, indent=0), "utf-8")
            except (OSError, StorageError) as error:
                log.warning("The digests of checkpoints were not kept on disk: %s", error)

    def _stored(self) -> dict[str, str]:
        """Table on disk; empty for a file that is missing or damaged, which is then rewritten."""
        try:
            if self._path is None or not self._path.is_file() or self._path.stat().st_size > MOST_BYTES:
                return {}
            found = json.loads(self._path.read_text("utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            log.warning("A damaged table of digests is made anew: %s", error)
            return {}
        entries = found.items() if isinstance(found, dict) else ()
        return {name: digest for name, digest in entries if _is_digest(name) and _is_digest(digest)}


TABLE = DigestTable()
"""The process's table."""


class Digested(ABC):
    """Something with a digest over texts and files, which is taken once."""

    @property
    @abstractmethod
    def pieces(self) -> Sequence[Piece]:
        """Texts and files that the digest covers."""

    @cached_property
    def sha256(self) -> str:
        """The digest, from the process's table or read now; raises CheckpointError for a file that cannot be read."""
        return TABLE.find(self.pieces) or TABLE.take(self.pieces)


@dataclass(frozen=True)
class WholeFile(Digested):
    """One file, whatever is in it."""

    path: Path

    @property
    def pieces(self) -> list[Piece]:
        return [self.path]


def take_digests(items: Iterable[Digested], report: Callable[[float], None]) -> None:
    """Takes the digests of all items, of several at a time where files must be read.

    `report` is called in the calling thread, while files are read, with the fraction done, and may raise to stop.
    Raises CheckpointError for a file that cannot be read.
    """
    unread = [item for item in items if "sha256" not in vars(item) and TABLE.find(item.pieces) is None]
    total = sum(path.stat().st_size for item in unread for path in _files(item.pieces))
    if total == 0:
        return
    done, lock, stop = [0], threading.Lock(), threading.Event()

    def tell(count: int) -> None:
        if stop.is_set():
            raise _StoppedError
        with lock:
            done[0] += count

    def read(item: Digested) -> None:
        vars(item)["sha256"] = TABLE.take(item.pieces, tell)  # where its cached property keeps it

    with ThreadPoolExecutor(READERS) as pool:
        try:
            running = {pool.submit(read, item) for item in unread}
            while running:
                finished, running = wait(running, _POLL_S, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                if running:
                    report(min(done[0] / total, 1.0))
        finally:
            stop.set()


class _StoppedError(Exception):
    """Ends the reading in other threads once one has failed or the user has interrupted."""


def _add_file(sha: hashlib._Hash, path: Path, tell: Tell) -> None:
    try:
        with path.open("rb") as stream:
            while block := stream.read(_BLOCK_BYTES):
                sha.update(block)
                tell(len(block))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}.") from error


def _name(pieces: Sequence[Piece]) -> str:
    """A name for the texts and for the files as the file system describes them now.

    Without the device's number, which some file systems get anew whenever they are mounted.
    """
    described: list[object] = []
    for piece in pieces:
        if isinstance(piece, str):
            described.append(piece)
            continue
        try:
            found, path = piece.stat(), os.path.realpath(piece)
        except OSError as error:
            raise CheckpointError(f"{piece} cannot be read: {error.strerror or error}.") from error
        described.append([path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino])
    return hashlib.sha256(json.dumps(described).encode("utf-8")).hexdigest()


def _is_fresh(path: Path) -> bool:
    return abs(time.time() - path.stat().st_mtime) < FRESH_S


def _files(pieces: Sequence[Piece]) -> list[Path]:
    return [piece for piece in pieces if isinstance(piece, Path)]


def _is_digest(value: object) -> bool:
    return isinstance(value, str) and _DIGEST.fullmatch(value) is not None

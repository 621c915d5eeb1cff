"""Tensors kept by the content that they are made from: in memory, and on disk across restarts, both with a bound.

A file's name holds its key and the digest of its bytes, so that a damaged or half-copied entry is seen
and made again, never trusted.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import stat
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ..common.atomic_file import atomic_file, remove_left_temporaries
from ..common.errors import StorageError
from .request import Encoded

log = logging.getLogger(__name__)

_DIGEST_CHARS = 32
_MAX_NOTES = 100
_STALE_S = 24 * 3600
_NAME = re.compile(rf"([0-9a-f]{{64}})-([0-9a-f]{{{_DIGEST_CHARS}}})\.safetensors")


@dataclass(frozen=True)
class CacheLimits:
    """Limits of the cache in bytes; memory keeps the newest entry whatever its size."""

    memory_bytes: int = 256 << 20
    disk_bytes: int = 1 << 30


@dataclass(frozen=True)
class Hit:
    """Entry found in the cache, its place (`memory` or `disk`), and the seconds of its encoding."""

    encoded: Encoded
    place: str
    encode_s: float


class ConditioningCache:
    """A bounded cache from a key (64 hexadecimal digits) to tensors with notes; the least used goes first."""

    def __init__(self, folder: Path | None, limits: CacheLimits | None = None, what: str = "conditioning") -> None:
        """`folder` keeps entries beyond the process; None keeps them in memory. `what` names them in warnings."""
        self._folder = folder
        self._what = what
        self._limits = limits or CacheLimits()
        self._memory: OrderedDict[str, Hit] = OrderedDict()

    def get(self, key: str) -> Hit | None:
        """The entry of that key, or None when there is none that is whole."""
        if key in self._memory:
            self._memory.move_to_end(key)
            return self._memory[key]
        found = self._read(key)
        if found is not None:
            self._remember(key, replace(found, place="memory"))
        return found

    def put(self, key: str, encoded: Encoded, encode_s: float) -> None:
        """Keeps an entry; a disk that refuses costs no more than a warning."""
        self._remember(key, Hit(encoded, "memory", encode_s))
        if self._folder is None:
            return
        try:
            self._write(self._folder, key, encoded, encode_s)
            self._prune(self._folder)
        except (OSError, StorageError) as error:
            log.warning("The %s was not kept on disk: %s", self._what, error)

    def clear_memory(self) -> int:
        """Drops the entries in memory and returns their number; entries on disk stay."""
        count = len(self._memory)
        self._memory.clear()
        return count

    def _remember(self, key: str, entry: Hit) -> None:
        self._memory[key] = entry
        self._memory.move_to_end(key)
        while len(self._memory) > 1 and sum(map(_nbytes, self._memory.values())) > self._limits.memory_bytes:
            self._memory.popitem(last=False)

    def _read(self, key: str) -> Hit | None:
        for path in self._files_of(key):
            try:
                found = _parse(path, key, self._limits.disk_bytes)
            except (OSError, ValueError, LookupError, TypeError, RecursionError, MemoryError) as error:
                log.warning("A damaged %s entry is made again (%s: %s).", self._what, path.name[:16], error)
                _remove(path)
                continue
            with suppress(OSError):  # a read-only folder works, without times of use
                os.utime(path)
            return found
        return None

    def _write(self, folder: Path, key: str, encoded: Encoded, encode_s: float) -> None:
        from safetensors.torch import save

        metadata = {"key": key, "encode_s": repr(encode_s), "notes": json.dumps(encoded.notes)}
        data = save({name: tensor.contiguous() for name, tensor in encoded.tensors.items()}, metadata)
        folder.mkdir(parents=True, exist_ok=True)
        older = list(self._files_of(key))
        path = folder / f"{key}-{_digest(data)}.safetensors"
        with atomic_file(path) as temporary:
            temporary.write_bytes(data)
        for stale in older:
            if stale != path:
                stale.unlink(missing_ok=True)

    def _files_of(self, key: str) -> Iterator[Path]:
        if self._folder is not None and re.fullmatch(r"[0-9a-f]{64}", key):
            yield from sorted(self._folder.glob(f"{key}-*.safetensors"))

    def _prune(self, folder: Path) -> None:
        """Removes the least recently used files until the rest fits; another process may remove them first.

        Temporary files of killed processes are removed after a day.
        """
        remove_left_temporaries(folder, _STALE_S)
        entries = sorted(_stats(folder), reverse=True)
        total = 0
        for _, size_bytes, path in entries:
            total += size_bytes
            if total > self._limits.disk_bytes:
                path.unlink(missing_ok=True)


def _parse(path: Path, key: str, most_bytes: int) -> Hit:
    """Reads and checks one file; raises ValueError, or another error of a forged file, when it is not as named."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    match = _NAME.fullmatch(path.name)
    data = _read_plain(path, most_bytes)
    if match is None or match[2] != _digest(data):
        raise ValueError("its bytes do not have the digest in its name")
    try:
        metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
        tensors = load(data)
    except SafetensorError as error:
        raise ValueError(str(error)) from error
    if metadata["key"] != key:
        raise ValueError("it belongs to another key")
    notes, encode_s = json.loads(metadata["notes"]), float(metadata["encode_s"])
    if not isinstance(notes, list) or len(notes) > _MAX_NOTES or not all(isinstance(note, str) for note in notes):
        raise ValueError("its notes are no texts")
    if not math.isfinite(encode_s) or not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ValueError("its values are not finite")
    return Hit(Encoded(tensors, tuple(notes)), "disk", encode_s)


def _read_plain(path: Path, most_bytes: int) -> bytes:
    """The bytes of a plain file: a pipe would never end, and a link could lead anywhere."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > most_bytes:
        raise ValueError(f"it is no plain file of at most {most_bytes} bytes")
    return path.read_bytes()


def _remove(path: Path) -> None:
    """Removes a file or folder; one that stays does no harm: a new entry has another name, or replaces it."""
    with suppress(OSError):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:_DIGEST_CHARS]


def _stats(folder: Path) -> Iterator[tuple[float, int, Path]]:
    for path in folder.glob("*.safetensors"):
        try:
            stat = path.stat()
        except FileNotFoundError:
            continue
        yield stat.st_mtime, stat.st_size, path


def _nbytes(entry: Hit) -> int:
    """Bytes that the entry keeps in memory: a slice keeps the whole storage that it was cut from."""
    return sum(tensor.untyped_storage().nbytes() for tensor in entry.encoded.tensors.values())

"""Engines that were put aside, kept for inspection: the newest few, so that damage that comes again fills no disk."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

MOST = 8
MOST_BYTES = 4 << 30
"""Bytes that are kept, the newest engines first; the very newest whatever its size."""


def bound(folder: Path, newest: Path) -> None:
    """Removes the oldest entries of the folder until the rest is few and small enough.

    `newest` has just come and stays. An entry that cannot be removed now is removed the next time.
    """
    with suppress(OSError, NotImplementedError):  # a renamed folder has the time of its making
        os.utime(newest, follow_symlinks=False)
    others = sorted((path for path in folder.iterdir() if path != newest), key=_changed_s, reverse=True)
    total_bytes = _size_bytes(newest)
    for number, path in enumerate(others, 2):
        total_bytes += _size_bytes(path)
        if number > MOST or total_bytes > MOST_BYTES:
            remove(path)


def remove(path: Path) -> None:
    """Removes a folder, or a link or file in its place, as far as the disk allows it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _changed_s(path: Path) -> float:
    """Time of the last change; long ago for an entry that another process removes meanwhile."""
    try:
        return path.lstat().st_mtime
    except OSError:
        return 0.0


def _size_bytes(folder: Path) -> int:
    """Bytes of a folder's files, without the targets of links."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                total += (Path(place) / name).lstat().st_size
    return total

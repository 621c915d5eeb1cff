"""A file appears whole or not at all."""

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import StorageError

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
TEMPORARY_NAMES = ".[0-9a-f]*.part"
"""Pattern of the temporary files that a killed process leaves behind."""


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; the file written there becomes `path` when the block ends.

    Any failure, an interrupt included, removes the temporary file and leaves `path` as it was.

    Raises:
        StorageError: the file could not be created, written or renamed (no such folder, disk full).
    """
    temporary = path.absolute().with_name(f".{secrets.token_hex(8)}.part")
    try:
        # Created here, so that a missing folder or a lack of rights is reported before any work is done.
        temporary.open("xb").close()
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def publish_first(path: Path, write: Callable[[Path], object], is_flushed: bool = True) -> bool:
    """Writes a file unless `path` is there: of several writers, on several machines too, the first one's stays.

    `write` fills a temporary path beside it, which becomes `path` whole or not at all. Returns whether it did. Where
    the file system has no hard links, only writers of one process are kept apart. A file that is not flushed outlasts
    the process but not a loss of power: that is for content whose digest is compared whenever it is read.

    Raises:
        StorageError: the file could not be created, written or linked.
    """
    temporary = path.absolute().with_name(f".{secrets.token_hex(8)}.part")
    try:
        temporary.open("xb").close()
        write(temporary)
        return link_first(temporary, path, is_flushed)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def link_first(source: Path, path: Path, is_flushed: bool = True) -> bool:
    """Gives a whole file the name `path` unless that is taken; returns whether it did. See `publish_first`."""
    try:
        if is_flushed:
            _flush_to_disk(source)
        return _link(source, path)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error.strerror or error}.") from error


def write_text(path: Path, text: str) -> None:
    """Writes a text, and its folders, with the same line ends on every system; see `atomic_file`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        temporary.write_text(text, "utf-8", newline="\n")


def remove_left_temporaries(folder: Path, age_s: float) -> None:
    """Removes from a folder, not from those in it, the temporary files that killed processes left so long ago."""
    for path in folder.glob(TEMPORARY_NAMES):
        with suppress(OSError):
            if abs(time.time() - path.lstat().st_mtime) > age_s:
                path.unlink()


def _flush_to_disk(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _link(temporary: Path, path: Path) -> bool:
    try:
        os.link(temporary, path)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if path.exists():
            return False
        os.replace(temporary, path)
    return True

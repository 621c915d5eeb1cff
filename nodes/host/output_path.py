"""A free name for a file below a root, in a folder that cannot become another one while it is written to."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from ...common.errors import InputError, StorageError
from ...engine_builder.store.manifest import file_digest
from .safe_name import check_name, inside

_HAS_HANDLES = sys.platform == "linux"
"""Whether an open folder has a path of its own, which stays with it when its name goes to a link."""
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
"""Flags to open a folder itself: one that has become a link since the check is refused."""


@dataclass(frozen=True)
class SavePlace:
    """Place of a file: its path, and its name and subfolder as the page asks for them."""

    path: Path
    filename: str
    subfolder: str


@contextmanager
def free_place(root: Path, prefix: object, suffix: str, width: int, height: int) -> Iterator[SavePlace]:
    """A free name below `root` from a prefix such as `video/%year%/clip`; good for the block.

    Raises InputError for a prefix that leads out, StorageError when its folder cannot be made or written to.
    """
    *folders, stem = expanded(prefix, width, height).split("/")
    with ExitStack() as stack:
        try:
            held = stack.enter_context(held_folder(root, folders))
            number = _next_number(held, stem)
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(f"The folder of {str(prefix)[:80]!r} could not be made: {reason}.") from error
        filename = check_name(f"{stem}_{number:05}_{suffix}")
        try:
            yield SavePlace(held / filename, filename, "/".join(folders))
        except StorageError as error:  # in the user's words, and not by a handle
            raise StorageError(str(error).replace(str(held), str(root.joinpath(*folders)))) from error


def digest_below(root: Path, subfolder: str, filename: str) -> str | None:
    """The SHA-256 of a plain file below `root`; None without such a file, or for a name that leads out."""
    try:
        check_name(filename)
        with held_folder(root, check_name(subfolder).split("/") if subfolder else []) as folder:
            path = folder / filename
            return file_digest(path).sha256 if path.is_file() and not path.is_symlink() else None
    except (OSError, InputError):
        return None


@contextmanager
def held_folder(root: Path, folders: Sequence[str]) -> Iterator[Path]:
    """The folder of those names below `root`, made if it is missing, as a path that cannot be redirected.

    Links are followed where they stay inside. On Linux the path is that of an open handle, which no renaming
    can turn elsewhere; other systems check once more. Raises InputError for a folder outside `root`, OSError.
    """
    folder = inside(root.joinpath(*folders), root)
    if not _HAS_HANDLES:
        folder.mkdir(parents=True, exist_ok=True)
        yield inside(folder, root)
        return
    root = root.resolve()
    root.mkdir(parents=True, exist_ok=True)
    handle = os.open(root, _FOLDER)
    try:
        for name in folder.relative_to(root).parts:
            with suppress(FileExistsError):
                os.mkdir(name, dir_fd=handle)
            parent, handle = handle, os.open(name, _FOLDER, dir_fd=handle)
            os.close(parent)
        yield Path(f"/proc/self/fd/{handle}")
    finally:
        os.close(handle)


def _next_number(folder: Path, stem: str) -> int:
    """One more than the greatest number that a file of that stem has, as ComfyUI's own nodes count."""
    taken = re.compile(rf"{re.escape(stem)}_(\d{{1,9}})_", re.IGNORECASE)
    found = (taken.match(name) for name in os.listdir(folder))
    return max((int(match[1]) for match in found if match), default=0) + 1


def expanded(prefix: object, width: int, height: int) -> str:
    """The prefix with ComfyUI's own words for the time and the size filled in; raises InputError if it leads out."""
    name = check_name(prefix)
    words = {"width": str(width), "height": str(height)}
    formats = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
    now = time.localtime()
    words |= {word: time.strftime(form, now) for word, form in formats.items()}
    return check_name(re.sub(r"%(\w+)%", lambda match: words.get(match[1], match[0]), name))

"""A free name for a file below a root, in a folder that cannot become another one while it is written to."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

from ...common.errors import InputError, StorageError
from ...engine_builder.store.manifest import file_digest
from .safe_name import check_name, inside, relative_name

_HAS_HANDLES = sys.platform == "linux"
"""Whether an open folder has a path of its own, which stays with it when its name goes to a link."""
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_NOFOLLOW", 0)
"""Flags to open a folder itself: one that has become a link since the check is refused."""

COPY_BYTES = 1 << 20

_PLACEHOLDER = re.compile(r"%(date:[^%]*|\w+)%")
_DATE = "date:"
_TIME_WORDS = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
_DATE_PARTS: Mapping[str, Callable[[time.struct_time], int]] = {
    "d": lambda now: now.tm_mday,
    "M": lambda now: now.tm_mon,
    "h": lambda now: now.tm_hour,
    "m": lambda now: now.tm_min,
    "s": lambda now: now.tm_sec,
}


@dataclass
class SavePlace:
    """Place of a file: where to write it, and its name and subfolder as the page asks for them.

    The file has its name when the block of the place has ended: until then another server may take the next number.
    """

    path: Path
    filename: str
    subfolder: str


MayLeave = Callable[[str], bool]
"""Whether files may go into a subfolder of the root that a link leads out of it."""


def _never(subfolder: str) -> bool:
    """Lets no link lead out."""
    return False


@contextmanager
def free_place(
    root: Path,
    prefix: object,
    suffix: str,
    width: int,
    height: int,
    may_leave: MayLeave = _never,
    scratch: Path | None = None,
) -> Iterator[SavePlace]:
    """A file below `root` that a prefix such as `video/%year%/clip` names; good for the block.

    What is written to the path gets a name at the end of the block, and takes none that there is already. Where the
    drive takes files from start to end alone, as one over a bucket does, the path is in a folder below `scratch`.
    Raises InputError for a prefix that leads out, StorageError when its folder cannot be made or written to.
    """
    *folders, stem = expanded(prefix, width, height).split("/")
    with ExitStack() as stack:
        try:
            held = stack.enter_context(held_folder(root, folders, may_leave))
            filename = _name(stem, _next_number(held, stem), suffix)
            work = held
            if scratch is not None and not _takes_any_order(held):
                scratch.mkdir(parents=True, exist_ok=True)
                work = Path(stack.enter_context(TemporaryDirectory(prefix="i2v_save_", dir=scratch)))
        except OSError as error:
            reason = error.strerror or error
            raise StorageError(f"The folder of {str(prefix)[:80]!r} could not be made: {reason}.") from error
        place = SavePlace(work / f".{secrets.token_hex(8)}.part{suffix}", filename, "/".join(folders))
        named = root.joinpath(*folders)
        try:
            yield place
            place.filename = _named(place.path, held, stem, suffix)
        except StorageError as error:  # in the user's words, and not by a handle
            told = str(error).replace(str(place.path), str(named / filename)).replace(str(held), str(named))
            raise StorageError(told) from error
        except OSError as error:
            raise StorageError(f"{named / filename} could not be written: {error.strerror or error}.") from error
        finally:
            with suppress(OSError):
                place.path.unlink(missing_ok=True)


def _name(stem: str, number: int, suffix: str) -> str:
    return check_name(f"{stem}_{number:05}_{suffix}")


def _named(written: Path, folder: Path, stem: str, suffix: str) -> str:
    """Gives a written file the next free name in a folder, and returns it; raises OSError."""
    for number in count(_next_number(folder, stem)):
        name = _name(stem, number, suffix)
        with suppress(FileExistsError):  # another server was faster
            _take(written, folder / name)
            return name
    raise AssertionError("numbers do not end")


def _take(written: Path, path: Path) -> None:
    """Moves a file to a name that nothing has; raises FileExistsError where something has it."""
    if written.parent != path.parent:
        _copy(written, path)
        return
    try:
        os.link(written, path)
    except FileExistsError:
        raise
    except OSError:  # exFAT and some network drives have no links
        path.open("xb").close()
        os.replace(written, path)


def _copy(written: Path, path: Path) -> None:
    """Copies a file from start to end to a name that nothing has; of a failure nothing is left."""
    with written.open("rb") as source, path.open("xb") as target:
        try:
            shutil.copyfileobj(source, target, COPY_BYTES)
            target.flush()
        except OSError:
            with suppress(OSError):
                path.unlink()
            raise


_DRIVES: dict[int, bool] = {}
"""By the number of a drive, whether it takes files in any order."""


def _takes_any_order(folder: Path) -> bool:
    """Whether the drive of a folder, tried once, lets a file be written in any order and then be renamed.

    Encoders of mp4 go back to the head of the file; drives over a bucket refuse that.
    """
    number = folder.stat().st_dev
    if number not in _DRIVES:
        _DRIVES[number] = _tried(folder)
    return _DRIVES[number]


def _tried(folder: Path) -> bool:
    """The same by a file that is written, changed and renamed; where none can be made, whoever writes tells of it."""
    probe, renamed = (folder / f".{secrets.token_hex(8)}.part" for _ in range(2))
    try:
        with probe.open("xb", buffering=0) as file:
            file.write(b"0")
    except OSError:
        return True
    try:
        with probe.open("rb+", buffering=0) as file:
            file.write(b"1")
        os.replace(probe, renamed)
    except OSError:
        return False
    finally:
        for path in (probe, renamed):
            with suppress(OSError):
                path.unlink(missing_ok=True)
    return True


def digest_below(root: Path, subfolder: str, filename: str, may_leave: MayLeave = _never) -> str | None:
    """The SHA-256 of a plain file below `root`; None without such a file, or for a name that leads out."""
    try:
        check_name(filename)
        with held_folder(root, check_name(subfolder).split("/") if subfolder else [], may_leave) as folder:
            path = folder / filename
            return file_digest(path).sha256 if path.is_file() and not path.is_symlink() else None
    except (OSError, InputError):
        return None


@contextmanager
def held_folder(root: Path, folders: Sequence[str], may_leave: MayLeave = _never) -> Iterator[Path]:
    """The folder of those names below `root`, made if it is missing, as a path that cannot be redirected.

    Links are followed where they stay inside, or where `may_leave` lets them lead out. On Linux the path is that of
    an open handle, which no renaming can turn elsewhere; other systems check once more. Raises InputError for a
    folder outside `root`, OSError.
    """
    folder, root = root.joinpath(*folders), root.resolve()
    if not folder.resolve().is_relative_to(root) and may_leave("/".join(folders)):
        root = folder.resolve()
    folder = inside(folder, root)
    if not _HAS_HANDLES:
        folder.mkdir(parents=True, exist_ok=True)
        yield inside(folder, root)
        return
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
    """The name that a prefix stands for, with ComfyUI's placeholders filled in: for the size, the time and the date.

    `%date:yyyy-MM-dd%` is what ComfyUI's page replaces before it queues, done here for programs. A colon between
    hours and minutes becomes a hyphen. Raises InputError for a name that leads out, see `relative_name`.
    """
    if not isinstance(prefix, str):
        return check_name(prefix)
    now = time.localtime()
    words = {"width": str(width), "height": str(height)}
    words |= {word: time.strftime(form, now) for word, form in _TIME_WORDS.items()}

    def filled(match: re.Match[str]) -> str:
        text = match[1]
        if text.startswith(_DATE):
            return _date(text.removeprefix(_DATE), now).replace(":", "-")
        return words.get(text, match[0])

    return relative_name(_PLACEHOLDER.sub(filled, prefix))


def _date(form: str, now: time.struct_time) -> str:
    """A time in the page's notation: d, M, h, m, s, twice for two digits, yy and yyyy."""

    def filled(match: re.Match[str]) -> str:
        token = match[0]
        if token[0] == "y":
            return {2: f"{now.tm_year % 100:02}", 4: f"{now.tm_year}"}.get(len(token), token)
        return f"{_DATE_PARTS[token[0]](now):0{len(token)}}"

    return re.sub("dd?|MM?|hh?|mm?|ss?|yyy?y?", filled, form)

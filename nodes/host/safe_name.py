"""The one gate for names that come from a workflow and become part of a path."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from ...common.errors import InputError

_MAX_BYTES = 255
_MAX_NAME_BYTES = 1000
_FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[\d¹²³]) *(\..*)?", re.IGNORECASE)


def check_name(name: object) -> str:
    """A relative name such as `video/clip`, fit for every platform; raises InputError for any other.

    Refused: absolute names, `..`, control characters, backslash, colon and the like, names that Windows
    reserves, parts over 255 bytes, over 1000 bytes in all, parts that end in a dot or a space.
    """
    if not isinstance(name, str) or not name:
        raise InputError(f"A file name is a text such as video/clip, found {name!r:.80}.")
    if _FORBIDDEN.search(name):
        raise InputError(f'A file name has no control characters and none of \\ : * ? " < > |, found {name[:80]!r}.')
    if name.startswith("/"):
        raise InputError(f"A file name lies below the output folder, found the absolute {name[:80]!r}.")
    for part in name.split("/"):
        if part in ("", ".", "..") or part != part.rstrip(". ") or _RESERVED.fullmatch(part):
            raise InputError(
                f"A file name has no empty, dotted or reserved parts, found {part[:80]!r} in {name[:80]!r}."
            )
        if len(_utf8(part)) > _MAX_BYTES - 32:  # room for the counter, the suffix and a temporary name
            raise InputError(f"A part of a file name has at most {_MAX_BYTES - 32} bytes, found {len(_utf8(part))}.")
    if len(_utf8(name)) > _MAX_NAME_BYTES:
        raise InputError(f"A file name has at most {_MAX_NAME_BYTES} bytes in all, found {len(_utf8(name))}.")
    return name


def relative_name(name: object) -> str:
    """A prefix as ComfyUI's own nodes take it, as the name that it stands for; raises InputError as `check_name` does.

    Either slash divides folders; doubled and trailing ones, `./`, and dots and spaces that end a part mean nothing.
    """
    if not isinstance(name, str):
        return check_name(name)
    text = name.replace("\\", "/")
    if text.startswith("/"):
        return check_name(text)
    parts = (part.rstrip(". ") or part for part in text.split("/"))
    return check_name("/".join(part for part in parts if part not in ("", ".")))


def listed(name: object, paths: Mapping[str, Path]) -> Path | None:
    """The path of a name among those that were found; None for a name that is not among them.

    A name from Windows has backslashes where one from elsewhere has slashes; each finds the other. No path is made
    from the name.
    """
    if not isinstance(name, str):
        return None
    if name in paths:
        return paths[name]
    return next((path for each, path in paths.items() if _with_slashes(each) == _with_slashes(name)), None)


def _with_slashes(name: str) -> str:
    return name.replace("\\", "/")


def _utf8(part: str) -> bytes:
    try:
        return part.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(f"A file name is valid Unicode, found {part[:80]!r}.") from error


def inside(path: Path, root: Path) -> Path:
    """`path` with every link followed; raises InputError unless it is inside `root`, links followed too."""
    resolved = path.resolve()
    if not resolved.is_relative_to(root.resolve()):
        raise InputError(f"Expected a place inside {root}, found {path}, which leads out of it.")
    return resolved

"""The sizes that one engine serves, as a line of text: `512x512x16, 1280x704x16`."""

from __future__ import annotations

import re

from ...common.errors import InputError
from ...pipeline.conditioning import check_fields
from ...pipeline.request import ClipSize

MOST = 8
"""Each preset makes a build longer."""
_SIZE = re.compile(r"\s*([0-9]{1,5})\s*x\s*([0-9]{1,5})\s*x\s*([0-9]{1,4})\s*")


def parse_presets(text: str) -> tuple[ClipSize, ...]:
    """The sizes in a line, by commas; raises InputError with the first that is none, or that no model can have."""
    parts = text.split(",")
    if len(parts) > MOST:
        raise InputError(f"There are at most {MOST} presets in one engine, found {len(parts)}.")
    return tuple(_size(part) for part in parts)


def _size(text: str) -> ClipSize:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise InputError(f"A preset is width x height x frames, such as 512x512x16, found {text.strip()!r:.40}.")
    size = ClipSize(*map(int, found.groups()))
    check_fields(size._asdict())
    return size

"""`run.py thumbnails`: draws the pictures of the workflows, of frames that a ComfyUI of this machine makes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ...common.atomic_file import atomic_file
from ...common.errors import I2VError
from ...common.pack_paths import PACK, PICTURE
from ...common.workflow_names import NAMES
from ...remote.comfyui.server import ServerStartError
from ..environment import ROOT, say

if TYPE_CHECKING:
    from PIL.Image import Image

FRAMES = ROOT / "out" / "thumbnails"
MOST_BYTES = 60_000
"""How large a picture may be: each is a part of every installed pack."""
QUALITIES = (90, 85, 80, 75, 70, 60)


def parser() -> argparse.ArgumentParser:
    """The command's own options."""
    made = argparse.ArgumentParser("run.py thumbnails", description=__doc__, allow_abbrev=False)
    made.add_argument("names", nargs="*", metavar="NAME", help="workflows to draw (all)")
    made.add_argument("--frames", type=Path, default=FRAMES, help="keeps the frames; those it has are not made again")
    made.add_argument("--out", type=Path, default=PACK / "workflows", help="where the pictures go (workflows)")
    return made


def main(arguments: Sequence[str]) -> int:
    """Makes the frames that are missing and draws the pictures; returns the exit status."""
    options = parser().parse_args(arguments)
    unknown = [name for name in options.names if name not in NAMES]
    if unknown:
        sys.stderr.write(f"run.py thumbnails: Expected names of workflows, found {', '.join(unknown)}.\n")
        return 2
    try:
        _draw(options.names or NAMES, options.frames, options.out)
    except (I2VError, OSError, ServerStartError) as error:
        sys.stderr.write(f"run.py thumbnails: {error}\n")
        return 1
    return 0


def _draw(names: Sequence[str], frames: Path, out: Path) -> None:
    from PIL.Image import open as open_image

    from .bundled import Pictures
    from .cards import drawn
    from .clips import RUNNABLE, make_clips, read_clip

    make_clips(frames)
    with open_image(PICTURE) as lake:
        pictures = Pictures(lake.convert("RGB"), {name: read_clip(frames, name) for name in RUNNABLE})
    for name in names:
        size = _save(drawn(name, pictures), out / f"{name}.jpg")
        say(f"drew {name}, {size:,} bytes")


def _save(picture: Image, path: Path) -> int:
    """Writes a picture in the best quality that is small enough; returns its bytes."""
    for quality in QUALITIES:
        with atomic_file(path) as temporary:
            picture.save(temporary, "JPEG", quality=quality, subsampling=0, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            break
    return path.stat().st_size

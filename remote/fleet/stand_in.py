"""A maker without ComfyUI, for benchmarks and tests of the fleet itself: its pictures say what comes of them.

A picture is a JSON object: `takes_s`, how long the clip takes; `waits_for`, a file without which it does not end;
`fails`, the reason why it cannot be made; `crashes` and `dies`, whether its maker or the worker's process ends over it.
Any other content is a clip of no length.
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any

from ...common.errors import InputError
from .clip_job import ClipJob
from .maker import CrashedError
from .shared_folder import read_picture

LOOK_S = 0.05


class StandInMaker:
    """Waits, and writes the picture and the digests into a file."""

    def __init__(self) -> None:
        self._stopped = threading.Event()

    def make(self, job: ClipJob, folder: Path) -> list[Path]:
        """See `Maker`."""
        content = read_picture(job) or b"{}"
        wish = _wish(content)
        self._stopped.clear()
        is_stopped = self._stopped.wait(wish.get("takes_s", 0.0))
        while "waits_for" in wish and not is_stopped and not Path(wish["waits_for"]).exists():
            is_stopped = self._stopped.wait(LOOK_S)
        if is_stopped:
            raise InputError("The clip was interrupted.")
        if wish.get("dies"):
            os._exit(1)
        if wish.get("crashes"):
            raise CrashedError("The stand-in for ComfyUI ended.")
        if "fails" in wish:
            raise InputError(wish["fails"])
        path = folder / "clip.mp4"
        path.write_bytes(f"{job.picture_digest} {job.workflow_digest}\n".encode() + content)
        return [path]

    def interrupt(self) -> None:
        """See `Maker`."""
        self._stopped.set()

    def close(self) -> None:
        """Has nothing to end."""


def _wish(content: bytes) -> dict[str, Any]:
    try:
        wish = json.loads(content)
    except ValueError:
        return {}
    return wish if isinstance(wish, dict) else {}

"""Frames that could not be saved as they should: kept without loss, with a sentence on how to go on."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

import comfy.model_management as memory
import torch

from ...common.errors import I2VError, StorageError
from ...pipeline.media.formats import MAX_FPS, MIN_FPS, Audio, VideoOptions
from ...pipeline.media.video import write_video
from . import folders

log = logging.getLogger(__name__)

PREFIX = "i2v_kept/frames"
WAYS = (("mkv-ffv1", None, "Load Video"), ("webp", 0.0, "Load Image"))
"""Formats without loss, their crf, and the node of ComfyUI that opens each; the second does without PyAV."""
FPS = 16.0


@contextmanager
def keeping(frames: torch.Tensor, fps: float, sound: Audio | None) -> Iterator[None]:
    """Keeps the frames where the block fails to save them, and adds to its sentence where they are.

    Raises what the block raised, as an error of the pack: StorageError for what is none. An interruption passes.
    """
    try:
        yield
    except memory.InterruptProcessingException:
        raise
    except Exception as error:
        told = str(error) if isinstance(error, I2VError) else f"The video could not be saved: {error!r:.200}."
        kept = _keep(frames, fps if math.isfinite(fps) and MIN_FPS <= fps <= MAX_FPS else FPS, sound)
        kind = type(error) if isinstance(error, I2VError) else StorageError
        raise kind(f"{told} {kept}".strip()) from error


def _keep(frames: torch.Tensor, fps: float, sound: Audio | None) -> str:
    """Writes the frames to the output folder, else to the temporary one; the sentence on that, empty without a file."""
    for temporary in (False, True):
        for key, crf, opener in WAYS:
            options = VideoOptions(key, fps, crf)
            try:
                with folders.save_place(PREFIX, options.spec.suffix, 0, 0, temporary=temporary) as place:
                    write_video(frames, place.path, options, audio=None if options.spec.is_image else sound)
            except Exception as error:  # whatever it is, the next place or format may do
                log.debug("frames not kept as %s", key, exc_info=error)
                continue
            folder = "temp" if temporary else "output"
            name = f"{place.subfolder}/{place.filename} [{folder}]"
            until = " until ComfyUI starts again" if temporary else ""
            if not temporary:
                _UNTOLD.add(place.subfolder)
            return f"The frames are kept without loss{until}: {opener} opens them as {name}."
    return ""


_UNTOLD: set[str] = set()
"""Folders in which something was kept since a save has told what lies there."""


def what_is_kept() -> list[str]:
    """A line on all frames that lie kept in the output folder, for the first save that succeeds after one that failed.

    Nothing is removed: a user alone knows whether the frames have been saved since.
    """
    lines = []
    while _UNTOLD:
        sizes = folders.output_sizes(subfolder := _UNTOLD.pop())
        if sizes:
            clips = "1 clip" if len(sizes) == 1 else f"{len(sizes)} clips"
            held = f"{subfolder} in the output folder holds {clips} that could not be saved, {sum(sizes) / 1e6:.2f} MB"
            lines.append(f"{held}: remove what you no longer need.")
    return lines

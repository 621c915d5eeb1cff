"""A clip from picture to file by the pack's own stages, with the seconds of each."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.pack_paths import PICTURE
from ..pipeline.media.formats import VideoOptions
from ..pipeline.media.image import rgb
from ..pipeline.media.video import write_video
from ..pipeline.request import ClipRequest
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import decode_clip, encode_clip, fitting_chunk, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.engines.engine_set import EngineSet
from .ladder.measure import synchronize

if TYPE_CHECKING:
    from PIL import Image


def timed_clip(engines: EngineSet, request: ClipRequest, denoising: Denoising, path: Path) -> dict[str, float]:
    """Seconds by stage, from picture to file; nothing is taken from a cache.

    Engines are prepared for the branches that the sampler runs, as it makes them.
    """
    clock = Laps(engines.device)
    plan = plan_clip(engines, request.size)
    sampling = plan_sampling(plan, denoising)
    if not sampling.is_guided:
        plan = replace(plan, sizes={**plan.sizes, "batch": 1})
    conditioning = encode_clip(plan, request, ConditioningCache(None), ignore)
    clock.lap("encode_s")
    latents = sample_clip(sampling, conditioning, ignore)
    clock.lap("denoise_s")
    frames = decode_clip(plan, latents, fitting_chunk(plan), ignore)
    clock.lap("decode_s")
    write_video(frames, path, VideoOptions("mp4-h264", 8.0))
    clock.lap("write_s")
    return clock.laps


class Laps:
    """Seconds of stages that follow each other; waits for the device at the end of each."""

    def __init__(self, device: torch.device) -> None:
        self.laps: dict[str, float] = {}
        self._device, self._last = device, time.monotonic()

    def lap(self, name: str) -> None:
        """Ends a stage."""
        synchronize(self._device)
        there = time.monotonic()
        self.laps[name], self._last = there - self._last, there


def picture() -> Image.Image:
    """The bundled picture, RGB."""
    from PIL import Image

    with Image.open(PICTURE) as opened:
        return rgb(opened)


def build_report() -> Callable[[str, float], None]:
    """Tells each stage of a build once."""
    last = ""

    def report(stage: str, done: float) -> None:
        nonlocal last
        if stage != last:
            last = stage
            tell(f"building {stage}")

    return report


def tell(line: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def ignore(*_: object) -> None:
    """Watches no progress."""

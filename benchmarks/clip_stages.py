"""A clip from picture to file by the pack's own stages, with the seconds of each."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..common.pack_paths import PICTURE
from ..pipeline.dummies.full_size import FullSize, write_random_checkpoint
from ..pipeline.media.formats import VideoOptions
from ..pipeline.media.image import rgb
from ..pipeline.media.video import write_video
from ..pipeline.models.checkpoints.diffusers_folder import INDEX
from ..pipeline.request import ClipRequest
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import decode_clip, encode_clip, fitting_chunk, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.engines.engine_set import EngineSet
from .ladder.measure import free_memory, synchronize
from .measured_child import tell

if TYPE_CHECKING:
    from PIL import Image


def timed_clip(engines: EngineSet, request: ClipRequest, denoising: Denoising, path: Path) -> dict[str, float]:
    """Seconds by stage, from picture to file; see `make_clip`."""
    clock = Laps(engines.device)
    make_clip(engines, request, denoising, path, clock.lap)
    return clock.laps


def make_clip(
    engines: EngineSet,
    request: ClipRequest,
    denoising: Denoising,
    path: Path,
    on_stage: Callable[[str], None] = lambda name: None,
) -> torch.Tensor:
    """Makes a clip from picture to file, and returns its latents; nothing is taken from a cache.

    Engines are prepared for the branches that the sampler runs. `on_stage` is called at the end of each stage.
    """
    plan = plan_clip(engines, request.size)
    sampling = plan_sampling(plan, denoising)
    if not sampling.is_guided:
        plan = replace(plan, sizes={**plan.sizes, "batch": 1})
    conditioning = encode_clip(plan, request, ConditioningCache(None), ignore)
    on_stage("encode_s")
    latents = sample_clip(sampling, conditioning, ignore)
    on_stage("denoise_s")
    frames = decode_clip(plan, latents, fitting_chunk(plan), ignore)
    on_stage("decode_s")
    write_video(frames, path, VideoOptions("mp4-h264", float(request.fps)))
    on_stage("write_s")
    return latents


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


def build_report(tell: Callable[[str], None] = tell) -> Callable[[str, float], None]:
    """Tells each stage of a build once, on standard output if nothing else is given."""
    last = ""

    def report(stage: str, done: float) -> None:
        nonlocal last
        if stage != last:
            last = stage
            tell(f"building {stage}")

    return report


def checkpoint_at(folder: Path, full: FullSize, device: torch.device, *, tiny: bool) -> Path:
    """The checkpoint in `folder`, written where it is not complete: a tiny one, or one of the published size."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not (folder / INDEX).is_file():
        if tiny:
            full.write_tiny(folder)
        else:
            write_random_checkpoint(full, folder, device, 0)
            free_memory(device)
    return folder


def ignore(*_: object) -> None:
    """Watches no progress."""

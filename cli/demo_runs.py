"""The demo's job: open the model, build engines, make the clips."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from ..common.device import default_device
from ..engine_builder.store.store import EngineStore
from ..pipeline.decode import chunk_size
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from ..runtime.clip import decode_clip, encode_clip, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.demo_model import DemoModel
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy

FREE_BYTES = 1 << 30
"""Memory that decoding may take."""


@dataclass(frozen=True)
class DemoJob:
    """Job of the demo: the model, the picture's file, the seed, and each prompt with its video's path."""

    model: DemoModel
    picture: Path
    seed: int
    clips: tuple[tuple[str, Path], ...]
    cache: Path


@dataclass
class DemoRun:
    """Result of a run: seconds by stage in order, and notes for the user."""

    times: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, stage: str, elapsed_s: float) -> None:
        """Counts seconds to a stage."""
        self.times[stage] = self.times.get(stage, 0.0) + elapsed_s


def run_demo(job: DemoJob) -> DemoRun:
    """Runs the job in this process."""
    from PIL import Image

    from ..pipeline.media.formats import VideoOptions
    from ..pipeline.media.image import rgb
    from ..pipeline.media.video import write_video

    run, clock = DemoRun(), _Clock()
    picture = rgb(Image.open(job.picture))
    device = default_device()
    store = EngineStore(job.cache / "engines")
    engines = EngineSet(open_model(job.model.folder), store, EnginePolicy(shapes="exact"), device)
    model, side, frames = job.model, job.model.side, job.model.num_frames
    cache = ConditioningCache(job.cache / "conditioning")
    denoising = Denoising(job.seed, model.guidance_scale, SamplerSettings(model.steps))
    run.add("open model", clock.lap())
    plan = plan_clip(engines, ClipSize(side, side, frames))
    engines.prepare(plan.sizes)
    run.add("build engines", clock.lap())
    for prompt, video in job.clips:
        request = ClipRequest(picture, prompt, "", side, side, frames, model.fps)
        conditioning = encode_clip(plan, request, cache, _ignore)
        run.add("encode", clock.lap())
        latents = sample_clip(plan_sampling(plan, denoising), conditioning, _ignore)
        run.add("denoise", clock.lap())
        pictures = decode_clip(plan, latents, chunk_size(FREE_BYTES, side, side, frames), _ignore)
        run.add("decode", clock.lap())
        info = write_video(pictures, video, VideoOptions("mp4-h264", float(model.fps)))
        run.add("save", clock.lap())
        run.notes += [*conditioning.notes, *engines.take_notes(), *info.notes]
    return run


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        elapsed_s, self._last = now - self._last, now
        return elapsed_s


def _ignore(*_: object) -> None:
    """Ignores progress."""

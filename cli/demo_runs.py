"""The demo's job, done in one of two ways: through a live ComfyUI in API mode, or right here."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..common.device import default_device
from ..common.pack_paths import BUNDLED_NAME, PACK
from ..engine_builder.store.store import EngineStore
from ..pipeline.decode import chunk_size
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipRequest, ClipSize
from ..pipeline.tensor_cache import ConditioningCache
from ..remote.comfyui.client import ComfyClient, Event, RunResult, ServerError
from ..remote.comfyui.server import ComfyHost, link_pack, start_server
from ..runtime.clip import decode_clip, encode_clip, sample_clip
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.demo_model import DemoModel
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy

ARGUMENTS = ("--disable-api-nodes", "--database-url", "sqlite:///:memory:")
FREE_BYTES = 1 << 30
"""What decoding may take without ComfyUI, which would know how much there is."""
STAGES = {"2": "open model", "3": "find engines", "4": "build, encode", "5": "denoise", "6": "decode", "7": "save"}


@dataclass(frozen=True)
class DemoJob:
    """What to make and where: the model, the picture's file, the seed, and each prompt with its video's path."""

    model: DemoModel
    picture: Path
    seed: int
    clips: tuple[tuple[str, Path], ...]
    cache: Path


@dataclass
class DemoRun:
    """What was done: seconds by stage in order, and sentences worth telling."""

    times: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, stage: str, elapsed_s: float) -> None:
        """Counts seconds to a stage."""
        self.times[stage] = self.times.get(stage, 0.0) + elapsed_s


def run_here(job: DemoJob) -> DemoRun:
    """Runs the job in this process, without ComfyUI."""
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


def run_in_comfyui(job: DemoJob, host: ComfyHost) -> DemoRun:
    """Runs the job as an API workflow in a ComfyUI started for it, on a base directory of its own.

    Raises ServerError when the workflow fails there, with ComfyUI's own reason.
    """
    base = job.cache / "comfyui"
    link_pack(PACK, base)
    if job.model.name != BUNDLED_NAME:  # which the pack brings along
        _link(job.model.folder, base / "models" / "i2v" / job.model.name)
    _link(job.cache / "engines", base / "models" / "i2v_engines")
    clock = _Clock()
    with start_server(host, base, [*ARGUMENTS, *_device_arguments()], log_path=job.cache / "comfyui.log") as server:
        run = DemoRun({"start ComfyUI": clock.lap()})
        client, stages = ComfyClient(server.url), _StageTimes(run)
        picture = client.upload_image(job.picture)
        for prompt, video in job.clips:
            result = client.run(_workflow(job, picture, prompt), on_event=stages.hear)
            if result.status != "success":
                raise ServerError(f"the workflow failed in ComfyUI: {result.error}")
            stages.end()
            saved = result.outputs["7"]["images"][0]
            video.write_bytes(client.view(saved["filename"], saved["subfolder"], saved["type"]))
            run.notes += _texts(result)
    return run


def _workflow(job: DemoJob, picture: str, prompt: str) -> dict[str, Any]:
    """The published API workflow with the demo's own values."""
    workflow = json.loads((PACK / "workflows" / "api" / "image_to_video.json").read_text("utf-8"))
    model = job.model
    values: Mapping[str, Mapping[str, Any]] = {
        "1": {"image": picture},
        "2": {"checkpoint": model.name},
        "3": {"on_missing": "build"},
        "4": {
            "prompt": prompt,
            "negative_prompt": "",
            "width": model.side,
            "height": model.side,
            "num_frames": model.num_frames,
            "fps": model.fps,
        },
        "5": {"seed": job.seed, "steps": model.steps, "guidance_scale": model.guidance_scale},
        "7": {"filename_prefix": "video/demo"},
    }
    for node, inputs in values.items():
        workflow[node]["inputs"].update(inputs)
    return workflow


def _texts(result: RunResult) -> list[str]:
    """What the nodes said of themselves."""
    return [
        line for node in STAGES for text in result.outputs.get(node, {}).get("text", ()) for line in text.splitlines()
    ]


def _link(folder: Path, link: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(folder.resolve(), target_is_directory=True)


def _device_arguments() -> list[str]:
    """ComfyUI does not fall back to the CPU by itself."""
    import torch

    return [] if torch.cuda.is_available() else ["--cpu"]


class _Clock:
    """Seconds since the last lap."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def lap(self) -> float:
        now = time.monotonic()
        elapsed_s, self._last = now - self._last, now
        return elapsed_s


class _StageTimes:
    """Turns ComfyUI's `executing` messages into seconds by stage."""

    def __init__(self, run: DemoRun) -> None:
        self._run = run
        self._clock = _Clock()
        self._stage: str | None = None

    def hear(self, event: Event) -> None:
        if event.kind == "executing":
            self.end()
            self._stage = STAGES.get(str(event.data.get("node")))

    def end(self) -> None:
        elapsed_s = self._clock.lap()
        if self._stage is not None:
            self._run.add(self._stage, elapsed_s)
        self._stage = None


def _ignore(*_: object) -> None:
    """Hears progress that nobody watches."""

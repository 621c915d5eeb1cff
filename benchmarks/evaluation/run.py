"""The clips of every preset, made and measured one by one; what is done is kept, so that a later run goes on."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ...common.atomic_file import atomic_file, write_text
from ...common.digest import digest
from ...common.errors import InputError
from ...engine_builder.backends.eager import EagerBackend
from ...pipeline.acceleration.presets import EXACT_NAME, preset_of
from ...pipeline.decode import chunk_size
from ...pipeline.denoising.sampler import OnStep
from ...pipeline.denoising.schedulers import SamplerSettings
from ...pipeline.models.model_networks import DEEP, SHALLOW
from ...pipeline.tensor_cache import ConditioningCache
from ...runtime.clip import decode_clip, encode_clip, sample_clip
from ...runtime.clip_plan import Denoising, SamplingPlan, plan_clip, plan_sampling
from ...runtime.engines.engine_set import EngineSet
from ..ladder.measure import synchronize
from .clips import JudgedClip
from .measure import figures_of
from .progress import Progress, Tell

LOSSLESS = "another build"
"""Variant of the exact clip by another backend: the distance that nobody calls a loss."""
FREE_BYTES = 1 << 30


@dataclass(frozen=True)
class Order:
    """Clips under presets, with the exact clip's settings; the other build makes the first `lossless` of them."""

    clips: Sequence[JudgedClip]
    presets: tuple[str, ...]
    steps: int
    guidance_scale: float
    scheduler: str
    lossless: int

    @property
    def jobs(self) -> list[tuple[JudgedClip, str]]:
        """Each clip with each variant, the exact one of a clip first."""
        found = []
        for number, clip in enumerate(self.clips):
            variants = (EXACT_NAME, *((LOSSLESS,) if number < self.lossless else ()), *self.presets)
            found += [(clip, variant) for variant in variants]
        return found


class Evaluation:
    """Rows by variant and clip in a folder, with the frames of the exact clips beside them.

    Rows of another order, model or policy have other names, and are left alone.
    """

    def __init__(self, folder: Path, engines: EngineSet, other: EngineSet, order: Order) -> None:
        self._folder, self._engines, self._other, self._order = folder, engines, other, order
        folder.mkdir(parents=True, exist_ok=True)
        self._cache = ConditioningCache(folder / "conditioning")

    def run(self, tell: Tell, minutes: float | None = None) -> dict[str, dict[str, dict[str, Any]]]:
        """Makes what is missing, with lines on the clip and its steps, and gives all rows.

        No clip is begun that would not end within the `minutes`, and only what is there is given; raises InputError
        where that is nothing.
        """
        rows: dict[str, dict[str, dict[str, Any]]] = {}
        jobs = self._order.jobs
        calls = {variant: self._sampling(variant, self._order.clips[0]).most_calls for _, variant in jobs}
        left = sum(calls[variant] for clip, variant in jobs if not self._is_made(clip, variant))
        progress = Progress(tell, left, None if minutes is None else 60 * minutes)
        for number, (clip, variant) in enumerate(jobs, start=1):
            if not self._is_made(clip, variant):
                if not progress.has_time(calls[variant]):
                    break
                progress.begin(f"{number} of {len(jobs)}: {variant}, {clip.name}", calls[variant])
                self._make(clip, variant, progress.step)
                progress.end()
            found = json.loads(self._path(clip, variant, "json").read_text("utf-8"))
            rows.setdefault(variant, {})[clip.name] = found
        if not rows:
            raise InputError("Expected time for a clip at least, found none: give more minutes.")
        return rows

    def frames(self, clip: JudgedClip, variant: str) -> torch.Tensor:
        """The frames of a clip that has been made."""
        from safetensors.torch import load_file

        return load_file(self._path(clip, variant, "safetensors"))["frames"]

    def _path(self, clip: JudgedClip, variant: str, ending: str) -> Path:
        engines, order = self._engines, self._order
        preset = preset_of(variant, engines.model) if variant in order.presets else None
        told = {
            "clip": [clip.name, clip.seed, *clip.request.size, clip.request.fps],
            "variant": [variant, repr(preset.acceleration) if preset else ""],
            "settings": [order.steps, order.guidance_scale, order.scheduler],
            "weights": [engines.model.components[name].spec.weights_sha256 for name in engines.model.denoisers],
            "device": [engines.device.type, engines.precision, engines.policy.backend],
        }
        return self._folder / "clips" / f"{digest(told)[:24]}.{ending}"

    def _is_made(self, clip: JudgedClip, variant: str) -> bool:
        return all(self._path(clip, variant, ending).is_file() for ending in ("json", "safetensors"))

    def _make(self, clip: JudgedClip, variant: str, on_step: OnStep) -> None:
        from safetensors.torch import save_file

        frames, row = self._clip(clip, variant, on_step)
        reference = None if variant == EXACT_NAME else self.frames(clip, EXACT_NAME)
        started = time.monotonic()
        row |= figures_of(frames, clip, reference)
        row["judge_s"] = time.monotonic() - started
        path = self._path(clip, variant, "json")
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path.with_suffix(".safetensors")) as temporary:
            save_file({"frames": frames}, temporary)
        write_text(path, json.dumps({"variant": variant, "clip": clip.name, **row}) + "\n")

    def _sampling(self, variant: str, clip: JudgedClip) -> SamplingPlan:
        order = self._order
        engines = self._other if variant == LOSSLESS else self._engines
        preset = preset_of(variant if variant in order.presets else EXACT_NAME, engines.model)
        settings = SamplerSettings(order.steps, order.scheduler)
        plan = plan_clip(engines.with_preset(preset), clip.request.size)
        return plan_sampling(plan, Denoising(clip.seed, order.guidance_scale, settings))

    def _clip(self, clip: JudgedClip, variant: str, on_step: OnStep) -> tuple[torch.Tensor, dict[str, Any]]:
        """The clip's frames, and the seconds and calls that they took; the encoders are not counted."""
        sampling, size = self._sampling(variant, clip), clip.request.size
        plan, engines = sampling.clip, sampling.clip.engines
        conditioning = encode_clip(plan, clip.request, self._cache, _ignore)
        denoisers = {*engines.model.denoisers, DEEP, SHALLOW}
        for names, sizes in plan.engine_sizes:  # built and loaded before the clock runs
            engines.prepare(sizes, [name for name in names if name in {*denoisers, engines.model.decoder_component}])
            for name in denoisers & set(names):
                engines.runner(name, sizes)
        started, processor_started = time.monotonic(), time.process_time()
        latents = sample_clip(sampling, conditioning, on_step)
        synchronize(engines.device)
        sampled = time.monotonic()
        processor_s = time.process_time() - processor_started
        chunk = chunk_size(FREE_BYTES, size.height, size.width, size.num_frames)
        frames = decode_clip(plan, latents, chunk, _ignore, conditioning.tensors)
        seconds = {"sample_s": sampled - started, "decode_s": time.monotonic() - sampled, "sample_cpu_s": processor_s}
        return frames, {**seconds, "calls": sampling.most_calls}


def other_backend(engines: EngineSet) -> str:
    """A backend beside the one that serves these engines: eager PyTorch, or ONNX Runtime beside that."""
    sizes = {"batch": 2, "frames": 1, "latent_height": 8, "latent_width": 8}
    served = engines.expected(engines.model.denoiser, sizes).name
    return EagerBackend.name if served != EagerBackend.name else "onnxruntime"


def _ignore(*_: object) -> None:
    """Watches no progress."""

"""One clip of a model in eager PyTorch, made anew whenever it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime.clip import decode_clip, encode_clip, sample_clip
from i2v_tensorrt.runtime.clip_plan import Denoising, plan_clip, plan_sampling
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from .stages import engines_of


def nothing(*_: object) -> None: ...


@dataclass(frozen=True)
class Clips:
    engines: EngineSet
    request: ClipRequest
    denoising: Denoising
    chunk: int

    def make(self, report: Callable[[], object] = nothing, next_stage: Callable[[], object] = nothing) -> torch.Tensor:
        """Frames, float32 [frames, height, width, 3] on the CPU.

        `report` is called wherever a user's interruption can come through, `next_stage` between the three stages.
        """

        def heard(*_: object) -> None:
            report()

        plan = plan_clip(self.engines, self.request.size)
        conditioning = encode_clip(plan, self.request, ConditioningCache(None), heard)
        next_stage()
        latents = sample_clip(plan_sampling(plan, self.denoising), conditioning, heard)
        next_stage()
        return decode_clip(plan, latents, self.chunk, heard, conditioning.tensors)


def eager_engines(checkpoint: Path, store: Path, precision: str = "fp32", device: str = "cpu") -> EngineSet:
    return engines_of(checkpoint, store, device=device, precision=precision)

"""The stages of a small clip over a set of engines, and what runs in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.sampler import OnStep
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime.clip import decode_clip, encode_clip, latents_size, sample_clip
from i2v_tensorrt.runtime.clip_plan import Denoising, SamplingPlan, plan_clip, plan_sampling
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

REQUEST = ClipRequest(Image.new("RGB", (70, 50), "teal"), "a boat", "blurry", 64, 72, 3, 8)
GUIDED = Denoising(seed=5, guidance_scale=9.0, sampler=SamplerSettings(3))


def quiet(*_: object) -> None:
    """Watches no progress."""


def engines_of(folder: Path, store: Path, memory_manager: Any = None, device: str = "cpu", **policy: Any) -> EngineSet:
    """Engines of a checkpoint, on a CPU and in eager PyTorch unless the keywords say otherwise."""
    chosen = EnginePolicy(**{"backend": "eager", "precision": "fp32", **policy})
    return EngineSet(open_model(folder), EngineStore(store), chosen, torch.device(device), memory_manager)


def encoded(
    engines: EngineSet, request: ClipRequest = REQUEST, cache: ConditioningCache | None = None, *, shrink: bool = False
) -> Conditioning:
    plan = plan_clip(engines, request.size, shrink=shrink)
    return encode_clip(plan, request, cache or ConditioningCache(None), quiet)


def planned(engines: EngineSet, conditioning: Conditioning, denoising: Denoising = GUIDED) -> SamplingPlan:
    return plan_sampling(plan_clip(engines, conditioning.size), denoising)


def sampled(
    engines: EngineSet, conditioning: Conditioning, denoising: Denoising = GUIDED, on_step: OnStep = quiet
) -> torch.Tensor:
    return sample_clip(planned(engines, conditioning, denoising), conditioning, on_step)


def decoded(engines: EngineSet, latents: torch.Tensor, chunk: int = 1) -> torch.Tensor:
    return decode_clip(plan_clip(engines, latents_size(engines.model, latents)), latents, chunk, quiet)

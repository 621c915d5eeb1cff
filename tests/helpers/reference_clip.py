"""A clip that is made by us and by diffusers' pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from PIL import Image

from i2v_tensorrt.pipeline.media.image import picture_from_tensor
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from .stages import encoded, sampled


@dataclass(frozen=True)
class Clip:
    """All that decides a clip."""

    request: ClipRequest
    denoising: Denoising


def painted(width: int, height: int) -> Image.Image:
    return picture_from_tensor(torch.rand(height, width, 3, generator=torch.Generator().manual_seed(width)))


def ours(engines: EngineSet, wanted: Clip) -> torch.Tensor:
    """Final latents [frames, channels, h, w] in the sampler's scale."""
    latents = sampled(engines, encoded(engines, wanted.request), wanted.denoising)
    return engines.model.from_latent(latents) * engines.model.latent_scale


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The greatest, as a part of the greatest value of `other` (or of 1, if that is more)."""
    assert one.shape == other.shape
    return ((one - other).abs().max() / max(1.0, other.abs().max().item())).item()

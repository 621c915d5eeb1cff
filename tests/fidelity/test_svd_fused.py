"""Stable Video Diffusion's fused networks give what the plain ones give, with any set of rewrites."""

from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.pipeline.models.svd.fused import (
    DECODER_REWRITES,
    DENOISER_REWRITES,
    FusedDenoiser,
    FusedTemporalVaeDecoder,
)
from i2v_tensorrt.pipeline.models.svd.model import StableVideoDiffusion
from i2v_tensorrt.pipeline.models.svd.networks import DenoiserNetwork, TemporalVaeDecoder
from i2v_tensorrt.tests.fidelity.test_fused import EXACT, distance

SHAPES = [(2, 4, 8, 8), (2, 1, 16, 8), (1, 5, 8, 24), (2, 25, 8, 8)]
"""Branches, frames, height and width in latents."""


@pytest.fixture(scope="module")
def model(tiny_svd_folder: Path) -> StableVideoDiffusion:
    return StableVideoDiffusion.open(tiny_svd_folder)


@pytest.fixture(scope="module")
def unet(model: StableVideoDiffusion) -> Any:
    return model.part("unet", "fp32")


@pytest.fixture(scope="module")
def vae(model: StableVideoDiffusion) -> Any:
    return model.part("vae", "fp32")


def denoiser_inputs(model: StableVideoDiffusion, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Every tensor of the denoiser's specification, different in every branch."""
    sizes = dict(zip(("batch", "frames", "latent_height", "latent_width"), shape, strict=True))
    generator = torch.Generator().manual_seed(sum(shape))
    inputs = model.components["core"].spec.inputs
    return {tensor.name: torch.randn(tensor.shape_at(sizes), generator=generator) for tensor in inputs}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", range(1, len(DENOISER_REWRITES) + 1))
@torch.no_grad()
def test_every_rewrite_of_the_core_keeps_the_result(
    model: StableVideoDiffusion, unet: Any, shape: tuple[int, ...], count: int
) -> None:
    inputs = denoiser_inputs(model, shape)
    assert distance(FusedDenoiser(unet, DENOISER_REWRITES[:count])(**inputs), DenoiserNetwork(unet)(**inputs)) < EXACT


@pytest.mark.parametrize("name", DENOISER_REWRITES)
@torch.no_grad()
def test_each_rewrite_of_the_core_works_alone(model: StableVideoDiffusion, unet: Any, name: str) -> None:
    inputs = denoiser_inputs(model, (2, 3, 8, 8))
    assert distance(FusedDenoiser(unet, (name,))(**inputs), DenoiserNetwork(unet)(**inputs)) < EXACT


@torch.no_grad()
def test_a_lean_core_listens_to_every_input(model: StableVideoDiffusion, unet: Any) -> None:
    inputs = denoiser_inputs(model, (2, 3, 8, 8))
    denoiser = FusedDenoiser(unet, DENOISER_REWRITES)
    before = denoiser(**inputs)
    for name, value in inputs.items():
        assert distance(denoiser(**{**inputs, name: value + 0.5 * (1 + value.abs())}), before) > 1e-4, name


@pytest.mark.parametrize("shape", [(4, 8, 8), (1, 9, 6), (3, 5, 16)])
@pytest.mark.parametrize("count", range(1, len(DECODER_REWRITES) + 1))
@torch.no_grad()
def test_every_rewrite_of_the_decoder_keeps_the_result(vae: Any, shape: tuple[int, ...], count: int) -> None:
    frames, height, width = shape
    latents = torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(sum(shape)))
    fused_decoder = FusedTemporalVaeDecoder(vae, DECODER_REWRITES[:count])
    assert distance(fused_decoder(latents), TemporalVaeDecoder(vae)(latents)) < EXACT


@torch.no_grad()
def test_a_wrong_share_of_time_would_be_seen(model: StableVideoDiffusion, unet: Any) -> None:
    inputs = denoiser_inputs(model, (2, 3, 8, 8))
    expected = DenoiserNetwork(unet)(**inputs)
    denoiser = FusedDenoiser(unet, DENOISER_REWRITES)
    block = denoiser.down[0].resnets[0]
    factor = block.time_mixer.mix_factor.clone()
    try:
        block.time_mixer.mix_factor.data.neg_()
        assert distance(denoiser(**inputs), expected) > 1e-4
    finally:
        block.time_mixer.mix_factor.data.copy_(factor)

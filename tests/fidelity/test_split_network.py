"""Conditioner and denoiser together are diffusers' I2VGenXLUNet, at every shape, and listen to every input."""

from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL

SHAPES = [
    (1, 4, 8, 8),
    (2, 1, 8, 8),
    (1, 1, 16, 8),
    (2, 24, 8, 12),
    (2, 3, 16, 8),
    (2, 1, 40, 36),
    (1, 2, 9, 11),
    (2, 3, 10, 7),
]
"""Batch, frames, height and width in latents."""


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> I2VGenXL:
    return I2VGenXL.open(tiny_folder)


@pytest.fixture(scope="module")
def conditioner(model: I2VGenXL) -> torch.nn.Module:
    return model.load("conditioner", "fp32")


@pytest.fixture(scope="module")
def denoiser(model: I2VGenXL) -> torch.nn.Module:
    return model.load("core", "fp32")


@pytest.fixture(scope="module")
def whole(model: I2VGenXL) -> Any:
    """Diffusers' network with its own forward; read apart, so that nothing is shared with ours."""
    from diffusers import I2VGenXLUNet

    folder = model.checkpoint.parts["unet"].folder
    return I2VGenXLUNet.from_pretrained(folder, low_cpu_mem_usage=False).eval().requires_grad_(False)


def clip_inputs(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The conditioner's inputs, different in every branch and frame."""
    batch, frames, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))
    return {
        "fps": torch.arange(batch) * 7.0 + 8,
        "image_latents": torch.randn(batch, 4, frames, height, width, generator=generator),
        "image_embeds": torch.randn(batch, 1, 32, generator=generator),
        "text_states": torch.randn(batch, 77, 32, generator=generator),
    }


def denoiser_inputs(shape: tuple[int, ...], conditioner: torch.nn.Module) -> dict[str, torch.Tensor]:
    batch, frames, height, width = shape
    image_cond, fps_emb, context = conditioner(**clip_inputs(shape))
    return {
        "sample": torch.randn(batch, 4, frames, height, width, generator=torch.Generator().manual_seed(2)),
        "timestep": torch.full((batch,), 500.0),
        "image_cond": image_cond,
        "fps_emb": fps_emb,
        "context": context,
    }


def moved(network: torch.nn.Module, inputs: dict[str, torch.Tensor], name: str, change: torch.Tensor) -> torch.Tensor:
    """How far each branch's outputs move with one input changed, all outputs together."""
    before, after = network(**inputs), network(**{**inputs, name: inputs[name] + change})
    pairs = zip(before, after, strict=True) if isinstance(before, tuple) else [(before, after)]
    return torch.stack([(one - other).abs().flatten(1).amax(1) for one, other in pairs]).amax(0)


@pytest.mark.parametrize(
    ("shape", "timestep"),
    [
        *(pytest.param(shape, 981, id="x".join(map(str, shape))) for shape in SHAPES),
        ((2, 4, 8, 8), 501),
        ((2, 4, 8, 8), 1),
    ],
)
def test_equals_the_whole_network(
    shape: tuple[int, ...], timestep: int, whole: Any, conditioner: torch.nn.Module, denoiser: torch.nn.Module
) -> None:
    given, inputs = clip_inputs(shape), denoiser_inputs(shape, conditioner)
    expected = whole(
        inputs["sample"],
        torch.tensor(timestep),
        fps=given["fps"],
        image_latents=given["image_latents"],
        image_embeddings=given["image_embeds"],
        encoder_hidden_states=given["text_states"],
    ).sample
    found = denoiser(**{**inputs, "timestep": torch.full((shape[0],), float(timestep))})
    assert expected.abs().mean() > 0.01
    assert (found - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("name", ["fps", "image_latents", "image_embeds", "text_states"])
def test_the_conditioner_hears_every_input_in_its_branch_alone(
    name: str, branch: int, conditioner: torch.nn.Module
) -> None:
    inputs = clip_inputs((2, 3, 8, 8))
    change = torch.zeros_like(inputs[name])
    change[branch] = 0.1
    moves = moved(conditioner, inputs, name, change)
    assert moves[branch] > 1e-4 and moves[1 - branch] == 0


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("name", ["sample", "timestep", "image_cond", "fps_emb", "context"])
def test_the_core_hears_every_input_in_its_branch_alone(
    name: str, branch: int, conditioner: torch.nn.Module, denoiser: torch.nn.Module
) -> None:
    inputs = denoiser_inputs((2, 3, 8, 8), conditioner)
    change = torch.zeros_like(inputs[name])
    change[branch] = 50 if name == "timestep" else 0.1
    moves = moved(denoiser, inputs, name, change)
    assert moves[branch] > 1e-4 and moves[1 - branch] == 0


@pytest.mark.parametrize("frame", range(3))
def test_every_frame_of_the_pictures_latents_counts(frame: int, conditioner: torch.nn.Module) -> None:
    inputs = clip_inputs((1, 3, 8, 8))
    change = torch.zeros_like(inputs["image_latents"])
    change[:, :, frame] = 0.1
    assert moved(conditioner, inputs, "image_latents", change).item() > 1e-4


@pytest.mark.parametrize("tokens", [slice(0, 77), slice(77, 141), slice(141, 145)], ids=["text", "latents", "picture"])
def test_every_kind_of_token_counts(tokens: slice, conditioner: torch.nn.Module, denoiser: torch.nn.Module) -> None:
    inputs = denoiser_inputs((1, 2, 8, 8), conditioner)
    assert inputs["context"].shape[1] == 145
    change = torch.zeros_like(inputs["context"])
    change[:, tokens] = 1.0
    assert moved(denoiser, inputs, "context", change).item() > 1e-5


def test_every_frame_of_the_sample_reaches_every_frame_of_the_prediction(
    conditioner: torch.nn.Module, denoiser: torch.nn.Module
) -> None:
    inputs = denoiser_inputs((1, 4, 8, 8), conditioner)
    before = denoiser(**inputs)
    for frame in range(4):
        sample = inputs["sample"].clone()
        sample[:, :, frame] += 1
        after = denoiser(**{**inputs, "sample": sample})
        assert bool(((after - before).abs().amax((0, 1, 3, 4)) > 1e-5).all())

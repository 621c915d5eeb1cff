"""What networks are reckoned to take beside their weights, against what was measured on an H200."""

from __future__ import annotations

from pathlib import Path

import pytest

from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Checkpoint
from i2v_tensorrt.pipeline.models.diffusers_family import DiffusersFamily
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.models.svd.model import StableVideoDiffusion

MIB = 1 << 20
FAMILIES: dict[str, type[DiffusersFamily]] = {"i2vgen-xl": I2VGenXL, "svd": StableVideoDiffusion}
NEARNESS = 0.15
SMALL_BYTES = 64 * MIB
"""What an estimate may lie above beside that, but for a denoiser, whose numbers are large."""
MEASURED = [
    ("i2vgen-xl", "core", "fp16", 512, 512, 16, 2, 2649),
    ("i2vgen-xl", "core", "fp16", 512, 512, 16, 1, 1320),
    ("i2vgen-xl", "core", "fp16", 704, 1280, 16, 2, 9085),
    ("i2vgen-xl", "core", "fp32", 512, 512, 16, 2, 5298),
    ("svd", "core", "fp16", 1024, 576, 25, 2, 7893),
    ("svd", "core", "fp16", 512, 512, 14, 2, 1965),
    ("i2vgen-xl", "vae_decoder", "fp16", 512, 512, 8, 1, 4097),
    ("i2vgen-xl", "vae_decoder", "fp16", 1024, 576, 8, 1, 9217),
    ("i2vgen-xl", "vae_encoder", "fp16", 512, 512, 1, 1, 384),
    ("i2vgen-xl", "vae_encoder", "fp16", 1024, 1024, 1, 1, 1536),
    ("i2vgen-xl", "vae_encoder", "fp16", 2048, 2048, 1, 1, 6144),
    ("i2vgen-xl", "conditioner", "fp16", 704, 1280, 64, 2, 363),
    # In a live ComfyUI: 7.19 GiB at the most, 4.66 of it held before.
    ("i2vgen-xl", "vae_decoder", "fp16 by inductor", 512, 512, 8, 1, (7.19 - 4.66) * 1024),
]
"""MiB of PyTorch's peak, in eager PyTorch unless told: family, component, precision, sides, frames, branches."""


def sizes(width: int, height: int, frames: int, batch: int) -> dict[str, int]:
    return {
        "batch": batch,
        "frames": frames,
        "chunk": frames,
        "latent_width": width // 8,
        "latent_height": height // 8,
    }


def family(name: str) -> DiffusersFamily:
    return FAMILIES[name](Checkpoint(Path(), {}))


@pytest.mark.parametrize(
    ("name", "component", "precision", "width", "height", "frames", "batch", "measured_mib"), MEASURED, ids=str
)
def test_an_estimate_is_near_what_was_measured(
    name: str, component: str, precision: str, width: int, height: int, frames: int, batch: int, measured_mib: float
) -> None:
    measured, (precision, _, backend) = measured_mib * MIB, precision.partition(" by ")
    size = sizes(width, height, frames, batch)
    found = family(name).scratch_bytes(component, size, precision, backend or "eager")
    spare = 0 if component == "core" or backend else SMALL_BYTES
    assert measured * (1 - NEARNESS) <= found <= measured * (1 + NEARNESS) + spare


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("component", ["core", "vae_decoder", "vae_encoder", "conditioner"])
def test_estimates_grow_with_the_clip_and_the_precision(name: str, component: str) -> None:
    model = family(name)
    small, large = sizes(512, 512, 8, 1), sizes(1024, 512, 8, 1)
    for backend in ("eager", "inductor", "tensorrt"):
        found = model.scratch_bytes(component, small, "fp16", backend)
        assert 0 < found < model.scratch_bytes(component, large, "fp16", backend)
        assert found < model.scratch_bytes(component, small, "fp32", backend)


def test_a_backend_that_was_measured_has_a_figure_of_its_own() -> None:
    size, model = sizes(512, 512, 16, 2), family("i2vgen-xl")
    eager, inductor, unmeasured = (
        model.scratch_bytes("core", size, "fp16", name) for name in ("eager", "inductor", "onnxruntime")
    )
    assert inductor < 0.6 * eager
    assert unmeasured == eager

"""The shapes that an engine is built for."""

import pytest

from i2v_tensorrt.engine_builder.errors import InputError
from i2v_tensorrt.engine_builder.spec import DimRange, ShapeProfile
from i2v_tensorrt.jobs.policy import EnginePolicy
from i2v_tensorrt.pipeline.decode import MAX_ELEMENTS, WIDEST, most_at_once

SIDE = DimRange(8, 64, 256, 8)
DECODER = ShapeProfile({"chunk": DimRange(1, 8, 64), "latent_height": SIDE, "latent_width": SIDE})


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 576), (1280, 704), (2048, 2048)])
def test_an_exact_decoder_takes_no_more_frames_than_can_be_indexed(width: int, height: int) -> None:
    """Seen at 1024x576: a range that no 32-bit index covers could not be compiled."""
    sizes = {"chunk": 8, "latent_height": height // 8, "latent_width": width // 8}
    chunk = EnginePolicy(shapes="exact").profile(DECODER, sizes, 8).ranges["chunk"]
    most = most_at_once(height, width)
    assert chunk == DimRange(1, min(8, most), min(64, most))
    assert most * WIDEST * height * width <= MAX_ELEMENTS < (most + 1) * WIDEST * height * width


def test_a_range_is_the_networks_own() -> None:
    sizes = {"chunk": 4, "latent_height": 72, "latent_width": 128}
    profile = EnginePolicy(shapes="range").profile(DECODER, sizes, 8)
    assert profile.optimum == sizes
    assert {name: (limits.min, limits.max) for name, limits in profile.ranges.items()} == {
        name: (limits.min, limits.max) for name, limits in DECODER.ranges.items()
    }


def test_what_the_network_does_not_take_is_told_in_latents() -> None:
    with pytest.raises(InputError, match=r"latent_height .* \(a latent is 8 pixels\)"):
        EnginePolicy(shapes="exact").profile(DECODER, {"latent_height": 9, "latent_width": 8, "chunk": 1}, 8)

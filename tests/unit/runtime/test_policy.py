"""The shapes that an engine is built for."""

import pytest

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.pipeline.decode import MAX_ELEMENTS, WIDEST, most_at_once
from i2v_tensorrt.pipeline.models.latent_space import LatentSpace, dims_of
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.engines.presets import MOST, parse_presets

SIDE = DimRange(8, 64, 256, 8)
LATENT = LatentSpace()
DECODER = ShapeProfile({"chunk": DimRange(1, 8, 64), "latent_height": SIDE, "latent_width": SIDE})


@pytest.mark.parametrize(("width", "height"), [(512, 512), (1024, 576), (1280, 704), (2048, 2048)])
def test_an_exact_decoder_takes_no_more_frames_than_can_be_indexed(width: int, height: int) -> None:
    """Seen at 1024x576: a range that no 32-bit index covers could not be compiled."""
    sizes = {"chunk": 8, "latent_height": height // 8, "latent_width": width // 8}
    chunk = EnginePolicy(shapes="exact").profile(DECODER, sizes, LATENT).ranges["chunk"]
    most = most_at_once(height, width)
    assert chunk == DimRange(1, min(8, most), min(64, most))
    assert most * WIDEST * height * width <= MAX_ELEMENTS < (most + 1) * WIDEST * height * width


def test_a_range_is_the_networks_own_and_what_it_does_not_take_is_told_in_latents() -> None:
    sizes = {"chunk": 4, "latent_height": 72, "latent_width": 128}
    profile = EnginePolicy(shapes="range").profile(DECODER, sizes, LATENT)
    assert profile.optimum == sizes
    found, own = ({name: (r.min, r.max) for name, r in each.ranges.items()} for each in (profile, DECODER))
    assert found == own
    with pytest.raises(InputError, match=r"latent_height .* \(a latent is 8 pixels\)"):
        EnginePolicy(shapes="exact").profile(DECODER, {"latent_height": 9, "latent_width": 8, "chunk": 1}, LATENT)


SMALL, LARGE = ClipSize(512, 512, 16), ClipSize(1280, 704, 16)
DENOISER = ShapeProfile(
    {"batch": DimRange(1, 2, 2), "frames": DimRange(1, 16, 64), "latent_height": SIDE, "latent_width": SIDE}
)
TEXT = ShapeProfile({"batch": DimRange(1, 2, 2)})


def profile_of(limits: ShapeProfile, asked: ClipSize, *presets: ClipSize, batch: int = 2) -> ShapeProfile:
    sizes = {"batch": batch, **dims_of(LATENT, asked)}
    policy = EnginePolicy(shapes="presets", presets=presets)
    return policy.profile(limits, {name: sizes[name] for name in limits.ranges}, LATENT)


def test_presets_are_exact_one_by_one_whichever_was_asked_for() -> None:
    found = profile_of(DENOISER, LARGE, SMALL, LARGE)
    small, large = {"latent_height": 64, "latent_width": 64}, {"latent_height": 88, "latent_width": 160}
    assert [each.optimum for each in found.profiles] == [{"batch": 2, "frames": 16, **each} for each in (small, large)]
    assert [each.width for each in found.profiles] == [1, 1]
    assert found == profile_of(DENOISER, SMALL, SMALL, LARGE)
    # What a preset does not say is as it was asked for.
    assert [each.optimum["batch"] for each in profile_of(DENOISER, SMALL, SMALL, LARGE, batch=1).profiles] == [1, 1]
    assert profile_of(TEXT, SMALL, SMALL, LARGE) == TEXT.exact({"batch": 2}), "sizes mean nothing to it: one engine"


def test_a_decoder_takes_as_many_frames_as_can_be_indexed_at_the_span_of_the_presets() -> None:
    """A backend without profiles compiles one graph for all of it: 1280 by 1280 pixels here."""
    found = profile_of(DECODER, LARGE, LARGE, ClipSize(704, 1280, 16))
    assert [each.ranges["chunk"].max for each in found.profiles] == [most_at_once(1280, 1280)] * 2
    assert found.ranges["chunk"].max == most_at_once(1280, 1280) < most_at_once(1280, 704)


@pytest.mark.parametrize(
    ("asked", "preset", "words"),
    [
        (ClipSize(1216, 704, 16), LARGE, "in the nearest, latent_width is 152, 8 below the smallest supported 160 "),
        (SMALL, ClipSize(520, 512, 16), "the preset 520x512x16: latent_width is 65, 1 more than a multiple of 8"),
        (SMALL, ClipSize(512, 512, 65), "the preset 512x512x65: this model makes at most 64 frames, found 65"),
    ],
)
def test_a_size_that_is_no_preset_or_a_preset_that_does_not_fit_is_named(
    asked: ClipSize, preset: ClipSize, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        profile_of(DENOISER, asked, SMALL, preset)
    if preset == LARGE:
        assert str(caught.value) == f"No preset serves this size: {words}(a latent is 8 pixels)."


@pytest.mark.parametrize("text", ["512x512x16,1280x704x16", " 512 x 512 x 16 , 1280x704x16 "])
def test_presets_are_read_from_a_line(text: str) -> None:
    with pytest.raises(InputError, match="such as 512x512x16, found none"):
        EnginePolicy(shapes="presets")
    assert parse_presets(text) == (SMALL, LARGE)
    assert ", ".join(map(str, parse_presets(text))) == "512x512x16, 1280x704x16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "width x height x frames, such as 512x512x16, found ''"),
        ("512x512", "found '512x512'"),
        ("512x512x16,", "found ''"),
        ("512x512x-1", "found '512x512x-1'"),
        ("\u0665\u0661\u0662x512x16", "such as 512x512x16"),
        ("513x512x16", "multiple of 8"),
        ("512x512x0", "whole number from"),
        (",".join(["512x512x16"] * (MOST + 1)), f"at most {MOST} presets in one engine, found {MOST + 1}"),
    ],
)
def test_a_line_that_holds_no_presets_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        parse_presets(text)

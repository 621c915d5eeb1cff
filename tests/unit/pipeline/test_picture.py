"""Every kind of picture becomes 8-bit RGB and is cropped as the reference crops, or is refused in one sentence."""

import io

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.media import image as module
from i2v_tensorrt.pipeline.media.image import cover, picture_from_tensor, rgb, to_unit_tensor

from ...helpers.refusals import refused

SIDES = st.integers(1, 120)
TARGETS = st.integers(1, 12).map(lambda count: 8 * count)


def gradient(width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(width * 1000 + height)
    return picture_from_tensor(torch.rand((height, width, 3), generator=generator))


def through_png(picture: Image.Image, **options: object) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", **options)
    return Image.open(buffer)


def reference_size(width: int, height: int, target: tuple[int, int]) -> tuple[int, int]:
    """What I2VGenXLPipeline scales a picture to before it crops."""
    scale = min(width / target[0], height / target[1])
    return round(width // scale), round(height // scale)


@pytest.mark.parametrize(
    ("pixel", "expected"),
    [
        ([0.2, 0.4, 0.6], (51, 102, 153)),
        ([0.4], (102, 102, 102)),
        ([0.0, 0.0, 0.0, 0.0], (255, 255, 255)),
        ([1.0, 0.0, 0.0, 1.0], (255, 0, 0)),
        ([0.0, 0.0, 0.0, 0.6], (102, 102, 102)),
        ([-3.0, 0.5, 7.0], (0, 128, 255)),
    ],
    ids=["rgb", "grey", "transparent", "opaque", "half_transparent", "clamped"],
)
@pytest.mark.parametrize("shape", [(1, 1), (2, 3)])
@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_tensor_of_any_kind_becomes_rgb(
    pixel: list[float], expected: tuple[int, ...], shape: tuple[int, int], batched: bool, dtype: torch.dtype
) -> None:
    image = torch.tensor(pixel, dtype=dtype).expand(*shape, len(pixel))
    picture = picture_from_tensor(image[None] if batched else image)
    assert (picture.mode, picture.size) == ("RGB", (shape[1], shape[0]))
    assert picture.getcolors() == [(shape[0] * shape[1], expected)]


def test_rows_and_columns_keep_their_place() -> None:
    image = torch.zeros(3, 5, 3)
    image[2, 1, 0] = 1
    assert picture_from_tensor(image).getpixel((1, 2)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (torch.zeros(2, 8, 8, 3), "batch of 2"),
        (torch.zeros(0, 8, 8, 3), "batch of 0"),
        (torch.zeros(8, 8), r"\[8, 8\]"),
        (torch.zeros(8, 8, 2), r"\[8, 8, 2\]"),
        (torch.zeros(1, 8, 0, 3), r"\[1, 8, 0, 3\]"),
        (torch.zeros(1, 1, 8, 8, 3), r"\[1, 1, 8, 8, 3\]"),
        (torch.full((8, 8, 3), torch.nan), "NaN"),
        (torch.full((8, 8, 3), torch.inf), "NaN"),
        (torch.zeros(1, 1, 3).expand(1 << 15, 1 << 15, 3), "32768x32768"),
    ],
    ids=["batch", "no_picture", "flat", "two_channels", "empty", "five_axes", "nan", "infinite", "huge"],
)
def test_tensor_that_is_no_picture_is_refused(image: torch.Tensor, word: str) -> None:
    with refused(InputError, word):
        picture_from_tensor(image)


def test_huge_tensor_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "isfinite", lambda _: pytest.fail("read every value"))
    with pytest.raises(InputError, match="pixels"):
        picture_from_tensor(torch.zeros(1, 1, 3).expand(1 << 15, 1 << 15, 3))


@pytest.mark.parametrize(
    ("mode", "color", "expected"),
    [
        ("1", 1, 255),
        ("L", 77, 77),
        ("LA", (0, 0), 255),
        ("LA", (9, 255), 9),
        ("RGBA", (0, 0, 0, 0), 255),
        ("I;16", 65535, 255),
        ("I;16", 257 * 40, 40),
        ("I;16", 255, 0),
        ("I", 257 * 200, 200),
    ],
)
def test_modes(mode: str, color: int | tuple[int, ...], expected: int) -> None:
    picture = rgb(Image.new(mode, (3, 2), color))
    assert (picture.mode, picture.size) == ("RGB", (3, 2))
    assert picture.getcolors() == [(6, (expected,) * 3)]


def test_palette_with_transparency_is_laid_over_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([0, 0, 0, 10, 20, 30])
    picture.putpixel((1, 0), 1)
    found = rgb(through_png(picture, transparency=0))
    assert [found.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def test_16_bit_png_keeps_its_levels_and_what_is_transparent_is_not_taken_for_one_of_8() -> None:
    picture = Image.new("I;16", (256, 1))
    for level in range(256):
        picture.putpixel((level, 0), level * 257)
    for options in ({}, {"transparency": 155}):
        found = rgb(through_png(picture, **options))
        assert [found.getpixel((x, 0)) for x in range(256)] == [(level,) * 3 for level in range(256)]


@given(SIDES, SIDES, TARGETS, TARGETS)
@settings(deadline=None, max_examples=60)
def test_cover_is_never_a_pixel_short(width: int, height: int, target_width: int, target_height: int) -> None:
    covered = cover(Image.new("RGB", (width, height), "white"), target_width, target_height)
    assert covered.size == (target_width, target_height)
    assert covered.getcolors() == [(target_width * target_height, (255, 255, 255))]


@given(SIDES, SIDES, TARGETS, TARGETS)
@settings(deadline=None, max_examples=60)
def test_cover_equals_the_reference_wherever_that_is_not_short(
    width: int, height: int, target_width: int, target_height: int
) -> None:
    picture, target = gradient(width, height), (target_width, target_height)
    size = reference_size(width, height, target)
    assume(size[0] >= target_width and size[1] >= target_height)
    left, top = (size[0] - target_width) // 2, (size[1] - target_height) // 2
    expected = picture.resize(size, Image.Resampling.BOX).crop((left, top, left + target_width, top + target_height))
    assert cover(picture, *target).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (64, 64), (1280, 704), (512, 512), (301, 457)])
@pytest.mark.parametrize("target", [(64, 64), (128, 64), (64, 128)])
def test_cover_equals_the_published_pipelines_crop(size: tuple[int, int], target: tuple[int, int]) -> None:
    from diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl import _center_crop_wide

    picture = gradient(*size)
    expected = _center_crop_wide(picture, target)
    assert isinstance(expected, Image.Image)
    assert cover(picture, *target).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(1, 1 << 20), (1 << 20, 1), (2, 1 << 17)])
def test_a_strip_that_would_fill_the_memory_is_refused(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "resize", lambda *_: pytest.fail("scaled it all the same"))
    with refused(InputError, f"{size[0]}x{size[1]}"):
        cover(Image.new("RGB", size), 2048, 2048)


def test_huge_picture_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_PIXELS", 99)
    assert rgb(Image.new("RGB", (9, 11))).size == (9, 11)
    with pytest.raises(InputError, match="at most 99 pixels, found 10x10"):
        rgb(Image.new("RGB", (10, 10)))


def test_unit_tensor() -> None:
    picture = gradient(5, 3)
    tensor = to_unit_tensor(picture)
    assert tensor.shape == (1, 3, 3, 5) and tensor.dtype == torch.float32
    red, green, blue = (round(value * 255) for value in tensor[0, :, 2, 4].tolist())
    assert (red, green, blue) == picture.getpixel((4, 2))

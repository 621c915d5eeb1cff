"""Conversion of frames: exact planes, padding, play order. The contact sheet: which it shows, where, and how large."""

import numpy as np
import pytest
import torch
from torch import Tensor

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.media.contact_sheet import BACKGROUND, GAP, LABEL_HEIGHT, MIN_TILE_WIDTH, contact_sheet
from i2v_tensorrt.pipeline.media.frames import evenly_chosen, make_clip, pad_to_even, play_order, to_rgb8, to_yuv420


@pytest.mark.parametrize(("height", "width"), [(2, 2), (6, 10), (10, 4)])
def test_planes_are_those_of_bt709(height: int, width: int) -> None:
    """Against ITU-R BT.709-6 in double precision: every sample is the nearest whole level."""
    frame = torch.rand((height, width, 3), generator=torch.Generator().manual_seed(height))
    r, g, b = np.moveaxis(frame.double().numpy(), -1, 0)
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    chroma = [(b - y) / 1.8556, (r - y) / 1.5748]
    halved = [plane.reshape(height // 2, 2, width // 2, 2).mean((1, 3)) for plane in chroma]
    expected = np.concatenate([16 + 219 * y.ravel(), *(128 + 224 * plane.ravel() for plane in halved)])
    planes = to_yuv420(frame)
    assert (planes.shape, planes.dtype) == ((height * 3 // 2, width), np.uint8)
    assert np.abs(planes.ravel() - expected).max() <= 0.5 + 1e-4


def test_padding_repeats_the_edge() -> None:
    frame = torch.arange(9.0).reshape(3, 3, 1).expand(3, 3, 3)
    padded = pad_to_even(frame)
    assert padded[..., 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [6, 7, 8, 8], [6, 7, 8, 8]]
    assert torch.equal(pad_to_even(padded), padded)


def test_levels_are_rounded_to_nearest() -> None:
    values = torch.tensor([0.0, 0.49, 0.51, 1.49, 254.49, 254.51, 255.0]).reshape(1, 7, 1) / 255
    assert to_rgb8(values).ravel().tolist() == [0, 0, 1, 1, 254, 255, 255]


def test_a_clip_does_not_copy_its_frames() -> None:
    frames = torch.zeros(3, 4, 4, 3, dtype=torch.bfloat16)
    clip = make_clip(frames, pingpong=True)
    frames[1] = 1
    assert clip.rgb(3).mean() == 1
    assert clip.rgb(3).dtype == torch.float32


@pytest.mark.parametrize("num_frames", [1, 2, 3, 8])
def test_pingpong_shows_no_frame_twice_in_a_row(num_frames: int) -> None:
    order = list(play_order(num_frames, pingpong=True))
    assert len(order) == max(1, 2 * num_frames - 2)
    looped = [*order, order[0]]
    if num_frames > 1:
        assert all(abs(a - b) == 1 for a, b in zip(looped, looped[1:], strict=False))
    assert list(play_order(num_frames, pingpong=False)) == list(range(num_frames))


# The contact sheet.


def flat_frames(num_frames: int, height: int = 32, width: int = 48) -> Tensor:
    """Frame k is grey at level 10 k + 50."""
    levels = torch.arange(num_frames)[:, None, None, None] * 10.0 + 50
    return (levels / 255).expand(-1, height, width, 3)


def test_frames_are_spread_evenly() -> None:
    found = [evenly_chosen(*each) for each in ((1, 8), (3, 8), (16, 8), (9, 3), (5, 1))]
    assert found == [[0], [0, 1, 2], [0, 2, 4, 6, 9, 11, 13, 15], [0, 4, 8], [0]]


def test_pictures_stand_in_order_with_gaps() -> None:
    sheet = np.asarray(contact_sheet(flat_frames(9), count=5, columns=3, labels=False))
    height = MIN_TILE_WIDTH * 32 // 48
    assert sheet.shape == (2 * height + 3 * GAP, 3 * MIN_TILE_WIDTH + 4 * GAP, 3)
    for place, index in enumerate([0, 2, 4, 6, 8]):
        top = GAP + place // 3 * (height + GAP)
        left = GAP + place % 3 * (MIN_TILE_WIDTH + GAP)
        assert (sheet[top : top + height, left : left + MIN_TILE_WIDTH] == 10 * index + 50).all()
        assert (sheet[top, left - 1] == BACKGROUND).all()
    assert (sheet[GAP + height + GAP :, -MIN_TILE_WIDTH:] == BACKGROUND).all()


def test_labels_stand_beneath_and_tell_frames_apart() -> None:
    sheet = np.asarray(contact_sheet(flat_frames(12), count=4, columns=4))
    height = MIN_TILE_WIDTH * 32 // 48
    strip = sheet[GAP + height : GAP + height + LABEL_HEIGHT]
    labels = [strip[:, GAP + place * (MIN_TILE_WIDTH + GAP) :][:, :MIN_TILE_WIDTH] for place in range(4)]
    assert all((label != BACKGROUND).any() for label in labels)
    assert len({label.tobytes() for label in labels}) == 4
    assert (sheet[GAP : GAP + height, GAP : GAP + MIN_TILE_WIDTH] == 50).all()


@pytest.mark.parametrize("max_width", [200, 640, 1280])
@pytest.mark.parametrize("size", [(576, 1024), (16, 16), (1024, 64)])
def test_width_is_bounded_and_shape_kept(max_width: int, size: tuple[int, int]) -> None:
    sheet = contact_sheet(flat_frames(2, *size), columns=2, labels=False, max_width=max_width)
    assert sheet.width <= max_width
    tile_width, tile_height = (sheet.width - 3 * GAP) / 2, sheet.height - 2 * GAP
    assert tile_height == pytest.approx(tile_width * size[0] / size[1], abs=0.51)


def test_grey_half_precision_frames() -> None:
    sheet = contact_sheet(flat_frames(1)[..., :1].half(), labels=False)
    assert sheet.getpixel((GAP + 1, GAP + 1)) == (50, 50, 50)


@pytest.mark.parametrize("settings", [{"count": 0}, {"columns": 0}, {"count": -1}, {"max_width": 30}, {"max_width": 0}])
def test_refusals(settings: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"A contact sheet .*\.$"):
        contact_sheet(flat_frames(8), **settings)

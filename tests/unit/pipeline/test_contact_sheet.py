"""The contact sheet: which frames it shows, where, and how large."""

import numpy as np
import pytest
import torch
from torch import Tensor

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.media.contact_sheet import BACKGROUND, GAP, LABEL_HEIGHT, MIN_TILE_WIDTH, contact_sheet
from i2v_tensorrt.pipeline.media.frames import evenly_chosen


def flat_frames(num_frames: int, height: int = 32, width: int = 48) -> Tensor:
    """Frame k is grey at level 10 k + 50."""
    levels = torch.arange(num_frames)[:, None, None, None] * 10.0 + 50
    return (levels / 255).expand(-1, height, width, 3)


@pytest.mark.parametrize(
    ("num_frames", "count", "chosen"),
    [(1, 8, [0]), (3, 8, [0, 1, 2]), (16, 8, [0, 2, 4, 6, 9, 11, 13, 15]), (9, 3, [0, 4, 8]), (5, 1, [0])],
)
def test_frames_are_spread_evenly(num_frames: int, count: int, chosen: list[int]) -> None:
    assert evenly_chosen(num_frames, count) == chosen


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

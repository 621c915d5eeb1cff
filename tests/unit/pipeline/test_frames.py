"""Conversion of frames: exact planes, padding, play order."""

import numpy as np
import pytest
import torch

from i2v_tensorrt.pipeline.media.frames import make_clip, pad_to_even, play_order, to_rgb8, to_yuv420


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

"""Comparison of clips whose difference is known."""

import math

import pytest
import torch
from torch import Tensor

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.quality.comparison import GAP, HEAT, compare, heat_map, make_pair, side_by_side
from i2v_tensorrt.pipeline.quality.metrics import psnr, ssim, temporal_flicker


def clips(num_frames: int = 3, height: int = 16, width: int = 24) -> tuple[Tensor, Tensor]:
    """Two clips that differ in one value of one pixel of the middle frame, by 0.25."""
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(num_frames, height, width, 3, generator=generator) * 0.5
    other = one.clone()
    other[num_frames // 2, 5, 7, 1] += 0.25
    return one, other


def ignore(*_: object) -> None:
    """Hears progress."""


def test_figures_are_those_of_the_metrics() -> None:
    one, other = clips()
    heard = []
    found = compare(*make_pair(one, other), lambda done, total: heard.append((done, total)))
    assert heard == [(1, 3), (2, 3), (3, 3)]
    assert (found.num_frames, found.width, found.height) == (3, 24, 16)
    assert found.psnr_db == (math.inf, pytest.approx(psnr(one[1], other[1])), math.inf)
    assert found.ssim == (1.0, pytest.approx(ssim(one[1], other[1])), 1.0)
    assert found.flicker == (pytest.approx(temporal_flicker(one)), pytest.approx(temporal_flicker(other)))
    assert (found.frame, found.x, found.y) == (1, 7, 5)
    assert found.greatest == pytest.approx(0.25)
    assert found.whole_psnr_db == pytest.approx(psnr(one, other))


def test_equal_clips_values_out_of_range_and_grey_count_as_they_are_shown() -> None:
    one, _ = clips()
    found = compare(*make_pair(one, one), ignore)
    assert (found.whole_psnr_db, found.greatest) == (math.inf, 0.0)
    found = compare(*make_pair(one, one.clone().sub_(1)), ignore)
    assert found.greatest == pytest.approx(one.max().item())
    grey = torch.full((2, 8, 8, 1), 0.5)
    assert compare(*make_pair(grey, grey.expand(-1, -1, -1, 3)), ignore).greatest == 0.0


def test_what_cannot_be_measured_is_left_out() -> None:
    one, other = clips(num_frames=1, height=6)
    found = compare(*make_pair(one, other), ignore)
    assert (found.ssim, found.flicker) == ((), (None, None))


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ((3, 16, 20, 3), "3 frames of 24x16 and 3 frames of 20x16"),
        ((2, 16, 24, 3), "3 frames of 24x16 and 2 frames of 24x16"),
        ((3, 8, 24, 3), "3 frames of 24x16 and 3 frames of 24x8"),
    ],
)
def test_clips_of_different_size_or_count_are_refused_in_a_sentence(shape: tuple[int, ...], told: str) -> None:
    with pytest.raises(InputError) as caught:
        make_pair(clips()[0], torch.zeros(shape))
    assert str(caught.value) == f"Expected two clips of one size and of as many frames, found {told}."


def test_frames_that_are_not_finite_are_refused() -> None:
    one, other = clips()
    other[2, 0, 0, 0] = torch.nan
    with pytest.raises(InputError, match="frame 2 holds NaN"):
        compare(*make_pair(one, other), ignore)


class TestSideBySide:
    def test_without_labels_it_is_the_two_clips_and_a_gap(self) -> None:
        one, other = clips()
        both = side_by_side(*make_pair(one, other), ("", " "))
        assert both.shape == (3, 16, 2 * 24 + GAP, 3)
        assert torch.equal(both[:, :, :24], one)
        assert torch.equal(both[:, :, 24 + GAP :], other)

    def test_labels_stand_above_their_own_clips_however_long_they_are(self) -> None:
        one, other = clips(width=64)
        plain = side_by_side(*make_pair(one, other), ("", "x"))
        strip = plain.shape[1] - 16
        assert strip > 0 and strip % 2 == 0
        assert torch.equal(plain[:, strip:, :64], one)
        left, right = plain[0, :strip, :64], plain[0, :strip, 64 + GAP :]
        assert left.unique(dim=0).shape[0] == 1  # nothing is written there
        assert right.max() > 0.8
        long = side_by_side(*make_pair(one, other), ("W" * 200, ""))[0, : plain.shape[1] - 16]
        assert long[:, :64].max() > 0.8
        assert long[:, 64:].unique().numel() <= 2


class TestHeatMap:
    def test_it_is_black_where_equal_and_brightest_where_most_apart(self) -> None:
        one, other = clips()
        heat = heat_map(*make_pair(one, other), 0.25)
        assert heat.shape == one.shape
        assert heat[1, 5, 7].tolist() == pytest.approx(HEAT[-1], abs=1e-4)
        heat[1, 5, 7] = 0
        assert heat.max() == 0
        beyond = heat_map(*make_pair(one, other), 0.1)
        assert beyond[1, 5, 7].tolist() == pytest.approx(HEAT[-1]), "beyond the brightest it stays as bright"

    def test_a_greater_difference_is_never_darker(self) -> None:
        steps = torch.linspace(0, 1, 101)[None, None, :, None].expand(1, 1, 101, 3)
        heat = heat_map(*make_pair(torch.zeros(1, 1, 101, 3), steps), 1.0)[0, 0]
        luma = heat @ torch.tensor([0.2126, 0.7152, 0.0722])
        assert bool((luma.diff() > 0).all())

"""The measurements, on clips whose motion is known, and on frames whose difference is known."""

import pytest
import torch

from i2v_tensorrt.demo_model.training.clips import Clips, render, shape_mask
from i2v_tensorrt.demo_model.training.evaluate import MOVES, VIEW_MOTIONS, agreement, held_out
from i2v_tensorrt.demo_model.training.measure import (
    VIEW_RADIUS,
    Track,
    as_saved,
    flicker,
    psnr,
    rank_correlation,
    ssim,
    track,
    warping_error,
)

CPU = torch.device("cpu")
PIXELS = 64


def known(motions: tuple[str, ...], **fixed: int) -> tuple[Clips, torch.Tensor]:
    clips = held_out(400, len(motions), motions, CPU, fps=12, adverb=0, **fixed)
    return clips, render(clips, torch.tensor([[0.0, 2.0, 4.0, 6.0]]).expand(len(motions), 4), PIXELS)


@pytest.fixture(scope="module")
def views() -> tuple[Clips, torch.Tensor, Track]:
    clips, frames = known(VIEW_MOTIONS)
    return clips, frames, follow(clips, frames)


def follow(clips: Clips, frames: torch.Tensor) -> Track:
    if bool(clips.names_a_shape.all()):
        return track(frames, shape_mask(clips, PIXELS), clips.centre)
    return track(frames)


def test_the_metric_agrees_with_the_truth_and_not_with_other_captions(views: tuple[Clips, torch.Tensor, Track]) -> None:
    clips, _, tracked = views
    assert all(agreement(clips, tracked))
    rolled = Track(tracked.steps.roll(1, 0))
    assert not any(agreement(clips, rolled))


def test_played_backwards_nothing_agrees(views: tuple[Clips, torch.Tensor, Track]) -> None:
    clips, frames, _ = views
    assert not any(agreement(clips, follow(clips, frames.flip(1))))


def test_the_metric_follows_a_named_shape() -> None:
    clips, frames = known(MOVES)
    assert all(agreement(clips, follow(clips, frames)))
    assert not any(agreement(clips, follow(clips, frames[:, :1].expand_as(frames))))


def test_speed_is_in_pixels_a_frame(views: tuple[Clips, torch.Tensor, Track]) -> None:
    _, _, tracked = views
    pans = tracked.speed(VIEW_RADIUS)[:4]
    assert torch.allclose(pans, torch.full((4,), 2 * 16 / 12), atol=0.25)


def test_warping_error_is_low_only_along_the_true_track(views: tuple[Clips, torch.Tensor, Track]) -> None:
    _, frames, tracked = views
    steps = tracked.steps
    assert (warping_error(frames, steps) < 0.5 * warping_error(frames, torch.zeros_like(steps))).all()


def test_eight_bits_keep_frames_within_half_a_level_and_cost_some_warping_error(
    views: tuple[Clips, torch.Tensor, Track],
) -> None:
    """So small is the truth's own error: what a file holds is to be judged beside what a file of the truth holds."""
    _, frames, tracked = views
    saved = as_saved(frames)
    assert float((saved - frames).abs().max()) <= 0.5001 / 255
    assert torch.equal(as_saved(saved), saved)
    assert float(warping_error(saved, tracked.steps).mean()) > 1.1 * float(warping_error(frames, tracked.steps).mean())


def test_flicker_of_a_frozen_clip_is_zero(views: tuple[Clips, torch.Tensor, Track]) -> None:
    _, frames, _ = views
    assert float(flicker(frames[:, :1].expand_as(frames)).max()) == 0
    assert float(flicker(frames).min()) > 0


def test_psnr_and_ssim_of_known_differences() -> None:
    picture = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    assert torch.allclose(psnr(picture + 0.1, picture), torch.tensor(20.0), atol=1e-3)
    assert torch.allclose(ssim(picture, picture), torch.tensor(1.0), atol=1e-5)
    assert (ssim(picture, picture.flip(-1)) < 0.5).all()


@pytest.mark.parametrize(("b", "expected"), [([1.0, 8, 27, 64], 1.0), ([4.0, 3, 2, 1], -1.0), ([1.0, 3, 2, 4], 0.8)])
def test_rank_correlation(b: list[float], expected: float) -> None:
    assert rank_correlation(torch.tensor([1.0, 2, 3, 4]), torch.tensor(b)) == pytest.approx(expected)

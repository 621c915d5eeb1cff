"""Metrics against scikit-image and numpy; comparison and similarity of clips whose difference is known."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.quality.comparison import GAP, HEAT, compare, heat_map, make_pair, side_by_side
from i2v_tensorrt.pipeline.quality.metrics import cosine, max_abs_difference, psnr, snr_db, ssim, temporal_flicker
from i2v_tensorrt.pipeline.quality.similarity import MAX_DB, frames_similarity, latents_similarity

PAIRED = [psnr, snr_db, cosine, max_abs_difference]


def pair(seed: int = 0, *, shape: tuple[int, ...] = (3, 8, 9, 3)) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(shape, generator=generator)
    return a, (a + 0.05 * torch.randn(shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("data_range", [1.0, 255.0])
def test_psnr_depends_on_the_range_and_not_on_the_greatest_value(data_range: float) -> None:
    a, b = (data_range * tensor for tensor in pair())
    expected = peak_signal_noise_ratio(a.double().numpy(), b.double().numpy(), data_range=data_range)
    assert psnr(a, b, data_range=data_range) == pytest.approx(expected, abs=1e-9)
    dark = torch.full((4,), 0.1) * data_range
    assert psnr(dark, dark + 0.1 * data_range, data_range=data_range) == pytest.approx(20, abs=1e-5)


def test_cosine_and_snr() -> None:
    a, b = pair(1)
    x, y = a.double().numpy().ravel(), b.double().numpy().ravel()
    assert cosine(a, b) == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), abs=1e-12)
    assert snr_db(a, b) == pytest.approx(10 * np.log10((x**2).sum() / ((x - y) ** 2).sum()), abs=1e-9)
    assert snr_db(a, b) != pytest.approx(snr_db(b, a), abs=1e-6)
    assert cosine(a, -3 * a) == pytest.approx(-1)


def test_max_abs_difference_and_equal_tensors() -> None:
    a, _ = pair(2)
    assert (psnr(a, a), snr_db(a, a), max_abs_difference(a, a)) == (math.inf, math.inf, 0.0)
    assert cosine(a, a) == pytest.approx(1)
    b = torch.zeros(4, 5)
    b[2, 3] = -0.75
    assert max_abs_difference(torch.zeros(4, 5), b) == 0.75


def test_sums_are_kept_in_double_precision() -> None:
    """In half precision the squares of these differences would all be zero."""
    a = torch.ones(1000, dtype=torch.float16)
    b = a.clone()
    b[0] = 0.9995
    step = 1 - b[0].double().item()
    assert psnr(a, b) == pytest.approx(10 * math.log10(1000 / step**2), abs=1e-9)


@pytest.mark.parametrize("metric", PAIRED)
def test_nan_passes_no_threshold(metric) -> None:
    a, b = pair(3)
    b[0, 0, 0, 0] = torch.nan
    assert math.isnan(metric(a, b))


@pytest.mark.parametrize("metric", PAIRED)
@pytest.mark.parametrize("shapes", [((2, 3), (3, 2)), ((2, 3), (3,)), ((0,), (0,))])
def test_shapes_must_agree(metric, shapes) -> None:
    with pytest.raises(InputError, match="one shape"):
        metric(*(torch.zeros(shape) for shape in shapes))


@pytest.mark.parametrize("data_range", [1.0, 255.0])
@pytest.mark.parametrize("shape", [(7, 7, 3), (16, 23, 3), (9, 8, 1)])
def test_ssim(data_range: float, shape: tuple[int, ...]) -> None:
    a, b = (data_range * tensor.double() for tensor in pair(5, shape=shape))
    expected = structural_similarity(a.numpy(), b.numpy(), data_range=data_range, channel_axis=-1)
    assert ssim(a, b, data_range=data_range) == pytest.approx(expected, abs=1e-9)
    assert ssim(a, a, data_range=data_range) == 1.0


@pytest.mark.parametrize("shape", [(6, 16, 3), (16, 6, 3), (16, 16)])
def test_ssim_needs_room_for_its_window(shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="at least 7x7"):
        ssim(torch.zeros(shape), torch.zeros(shape))


def test_flicker_is_that_of_vbench() -> None:
    """Against its definition on 8-bit frames; of a still and of a blinking clip."""
    levels = np.random.default_rng(4).integers(0, 256, (5, 6, 7, 3), dtype=np.uint8)
    expected = (255 - np.abs(np.diff(levels.astype(float), axis=0)).mean()) / 255
    assert temporal_flicker(torch.from_numpy(levels).double() / 255) == pytest.approx(expected, abs=1e-12)
    assert temporal_flicker(torch.full((4, 2, 2, 3), 0.3)) == 1.0
    assert temporal_flicker(torch.tensor([0.0, 1.0, 0.0]).reshape(3, 1, 1, 1)) == 0.0


@pytest.mark.parametrize("num_frames", [0, 1])
def test_flicker_needs_two_frames(num_frames: int) -> None:
    with pytest.raises(InputError, match=f"there are {num_frames}"):
        temporal_flicker(torch.zeros(num_frames, 2, 2, 3))


# Comparison.


def clips(num_frames: int = 3, height: int = 16, width: int = 24) -> tuple[Tensor, Tensor]:
    """Two clips that differ in one value of one pixel of the middle frame, by 0.25."""
    generator = torch.Generator().manual_seed(0)
    one = torch.rand(num_frames, height, width, 3, generator=generator) * 0.5
    other = one.clone()
    other[num_frames // 2, 5, 7, 1] += 0.25
    return one, other


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
    found = compare(*make_pair(one, one), lambda *_: None)
    assert (found.whole_psnr_db, found.greatest) == (math.inf, 0.0)
    found = compare(*make_pair(one, one.clone().sub_(1)), lambda *_: None)
    assert found.greatest == pytest.approx(one.max().item())
    grey = torch.full((2, 8, 8, 1), 0.5)
    assert compare(*make_pair(grey, grey.expand(-1, -1, -1, 3)), lambda *_: None).greatest == 0.0


def test_what_cannot_be_measured_is_left_out() -> None:
    one, other = clips(num_frames=1, height=6)
    found = compare(*make_pair(one, other), lambda *_: None)
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
        compare(*make_pair(one, other), lambda *_: None)


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


# Similarity.


def test_similarity_of_equal_clips() -> None:
    frames, latents = torch.rand(3, 16, 24, 3), torch.randn(3, 4, 2, 3)
    found = {**frames_similarity(frames, frames), **latents_similarity(latents, latents)}
    assert found.pop("latents_cosine") == pytest.approx(1)
    assert found == {
        "frames_psnr_mean_db": MAX_DB,
        "frames_psnr_worst_db": MAX_DB,
        "frames_max_abs": 0.0,
        "frames_ssim_mean": 1.0,
        "latents_snr_db": MAX_DB,
        "latents_max_abs": 0.0,
    }


def test_similarity_of_one_frame_of_two_off_by_a_tenth_and_of_latents_with_a_tenth_of_noise() -> None:
    frames = torch.full((2, 16, 16, 3), 0.5)
    wrong = frames.clone()
    wrong[1] += 0.1
    found = frames_similarity(frames, wrong)
    assert found["frames_psnr_worst_db"] == pytest.approx(20, abs=1e-4)
    assert found["frames_psnr_mean_db"] == pytest.approx((MAX_DB + 20) / 2, abs=1e-4)
    assert found["frames_max_abs"] == pytest.approx(0.1, abs=1e-6)
    latents = torch.tensor([3.0, 0.0, 4.0])
    found = latents_similarity(latents, latents + torch.tensor([0.0, 0.5, 0.0]))
    assert found["latents_snr_db"] == pytest.approx(20)
    assert found["latents_cosine"] == pytest.approx(5 / 25.25**0.5)
    assert found["latents_max_abs"] == 0.5


def test_frames_too_small_for_ssim_have_none() -> None:
    assert "frames_ssim_mean" not in frames_similarity(torch.rand(2, 4, 16, 3), torch.rand(2, 4, 16, 3))

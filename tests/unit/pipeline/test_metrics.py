"""Metrics against scikit-image and numpy."""

import math

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.quality.metrics import cosine, max_abs_difference, psnr, snr_db, ssim, temporal_flicker

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

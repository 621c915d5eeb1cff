"""Differences of two tensors, and steadiness of a clip; sums in float64, results plain floats.

NaN in an input gives NaN, which passes no threshold.
"""

import itertools

import torch
from torch import Tensor
from torch.nn import functional

from ...common.errors import InputError

SSIM_WINDOW = 7
"""Pixels: the side of the square over which SSIM takes its local means, and the least side of a frame."""
_K1, _K2 = 0.01, 0.03


def psnr(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> float:
    """Peak signal-to-noise ratio in dB, 10 log10(data_range^2 / mean squared error); infinite if equal.

    `data_range` is the span that values may take, and not the greatest value of either tensor.
    """
    a, b = _pair(a, b)
    return _decibel(torch.tensor(data_range, dtype=torch.float64).square() / (a - b).square().mean())


def snr_db(reference: Tensor, x: Tensor) -> float:
    """Signal-to-noise ratio in dB, 10 log10(energy of `reference` / energy of the difference)."""
    reference, x = _pair(reference, x)
    return _decibel(reference.square().sum() / (reference - x).square().sum())


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of the angle between two tensors seen as vectors, from -1 to 1; NaN if either is all zero."""
    a, b = _pair(a, b)
    return ((a * b).sum() / (a.norm() * b.norm())).item()


def max_abs_difference(a: Tensor, b: Tensor) -> float:
    """Greatest absolute difference of two tensors."""
    a, b = _pair(a, b)
    return (a - b).abs().max().item()


def ssim(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> float:
    """Structural similarity (Wang et al. 2004) of two frames [height, width, channels], 1 if equal.

    The mean over channels and over every whole 7x7 square, all its pixels of one weight, with the sample
    covariance: as scikit-image has it by default.

    Raises:
        InputError: shapes that differ, or a side below 7 pixels.
    """
    a, b = _pair(a, b)
    if a.ndim != 3 or min(a.shape[:2]) < SSIM_WINDOW:
        raise InputError(
            f"SSIM needs frames [height, width, channels] of at least {SSIM_WINDOW}x{SSIM_WINDOW} pixels, "
            f"but the shape is {list(a.shape)}."
        )
    return similarities(a.movedim(-1, 0), b.movedim(-1, 0), data_range=data_range).item()


def similarities(a: Tensor, b: Tensor, *, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each of two lists of images [..., channels, height, width], float64 [...], by `ssim`.

    It stays on the images' device, so that many are compared without waiting for each.
    """
    x, y = a.double(), b.double()
    count = SSIM_WINDOW**2
    mean_x, mean_y = _local_mean(x), _local_mean(y)
    var_x, var_y, covariance = (
        count / (count - 1) * (_local_mean(one * other) - mean)
        for one, other, mean in ((x, x, mean_x * mean_x), (y, y, mean_y * mean_y), (x, y, mean_x * mean_y))
    )
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    structure = (2 * covariance + c2) / (var_x + var_y + c2)
    return (luminance * structure).mean((-3, -2, -1))


def temporal_flicker(frames: Tensor) -> float:
    """Temporal flickering as VBench (arXiv 2311.17982) defines it: 1 is a still clip, less is more flicker.

    (255 - mean absolute difference of adjacent frames, in levels of 0..255) / 255, for `frames` from 0 to 1
    with time first.

    Raises:
        InputError: fewer than two frames.
    """
    if len(frames) < 2:
        raise InputError(f"Flicker needs at least 2 frames, but there are {len(frames)}.")
    pairs = itertools.pairwise(frames.detach())
    differences = [(after.double() - before.double()).abs().mean() for before, after in pairs]
    return ((255 - 255 * torch.stack(differences).mean()) / 255).item()


def _local_mean(planes: Tensor) -> Tensor:
    return functional.avg_pool2d(planes, SSIM_WINDOW, stride=1)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.numel() == 0:
        raise InputError(
            f"Two tensors of one shape with at least one value are needed, "
            f"but the shapes are {list(a.shape)} and {list(b.shape)}."
        )
    return a.detach().double(), b.detach().to(a.device).double()


def _decibel(ratio: Tensor) -> float:
    return (10 * torch.log10(ratio)).item()

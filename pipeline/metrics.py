"""How much two tensors differ, and how steady a clip is; sums in float64, results plain floats.

NaN in an input gives NaN, which passes no threshold.
"""

import itertools

import torch
from torch import Tensor

from ..engine_builder.errors import InputError


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


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.shape != b.shape or a.numel() == 0:
        raise InputError(
            f"Two tensors of one shape with at least one value are needed, "
            f"but the shapes are {list(a.shape)} and {list(b.shape)}."
        )
    return a.detach().double(), b.detach().to(a.device).double()


def _decibel(ratio: Tensor) -> float:
    return (10 * torch.log10(ratio)).item()

"""Similarity of two clips: latents as one vector, frames as pictures."""

from __future__ import annotations

import torch

from .metrics import SSIM_WINDOW, cosine, max_abs_difference, psnr, snr_db, ssim

MAX_DB = 200.0
"""Ratio reported for two results without any difference, in place of infinity."""


def latents_similarity(reference: torch.Tensor, latents: torch.Tensor) -> dict[str, float]:
    """Cosine, signal-to-noise ratio (dB) and greatest difference of two latents of one shape."""
    return {
        "latents_cosine": cosine(reference, latents),
        "latents_snr_db": min(snr_db(reference, latents), MAX_DB),
        "latents_max_abs": max_abs_difference(reference, latents),
    }


def frames_similarity(reference: torch.Tensor, frames: torch.Tensor) -> dict[str, float]:
    """PSNR (dB), SSIM and greatest difference of two clips [frames, height, width, 3] in 0..1.

    SSIM is left out where the frames are smaller than its window.
    """
    pairs = list(zip(reference, frames, strict=True))
    decibels = [min(psnr(one, other), MAX_DB) for one, other in pairs]
    found = {
        "frames_psnr_mean_db": sum(decibels) / len(decibels),
        "frames_psnr_worst_db": min(decibels),
        "frames_max_abs": max_abs_difference(reference, frames),
    }
    if min(reference.shape[1:3]) < SSIM_WINDOW:
        return found
    similarity = [ssim(one, other) for one, other in pairs]
    return {**found, "frames_ssim_mean": sum(similarity) / len(similarity)}

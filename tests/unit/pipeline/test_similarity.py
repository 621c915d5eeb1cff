"""Figures of similarity are those of clips whose difference is known."""

import pytest
import torch

from i2v_tensorrt.pipeline.quality.similarity import MAX_DB, frames_similarity, latents_similarity


def test_equal_clips() -> None:
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


def test_one_frame_of_two_off_by_a_tenth() -> None:
    frames = torch.full((2, 16, 16, 3), 0.5)
    wrong = frames.clone()
    wrong[1] += 0.1
    found = frames_similarity(frames, wrong)
    assert found["frames_psnr_worst_db"] == pytest.approx(20, abs=1e-4)
    assert found["frames_psnr_mean_db"] == pytest.approx((MAX_DB + 20) / 2, abs=1e-4)
    assert found["frames_max_abs"] == pytest.approx(0.1, abs=1e-6)


def test_latents_with_a_tenth_of_noise() -> None:
    latents = torch.tensor([3.0, 0.0, 4.0])
    found = latents_similarity(latents, latents + torch.tensor([0.0, 0.5, 0.0]))
    assert found["latents_snr_db"] == pytest.approx(20)
    assert found["latents_cosine"] == pytest.approx(5 / 25.25**0.5)
    assert found["latents_max_abs"] == 0.5


def test_frames_too_small_for_ssim_have_none() -> None:
    assert "frames_ssim_mean" not in frames_similarity(torch.rand(2, 4, 16, 3), torch.rand(2, 4, 16, 3))

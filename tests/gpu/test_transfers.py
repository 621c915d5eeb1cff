"""Frames on their way to the GPU and back."""

import torch

from i2v_tensorrt.pipeline.filters.transfers import Download, Uploads

GPU = torch.device("cuda", 0)


def test_frames_come_back_as_they_went_whatever_memory_they_lie_in() -> None:
    uploads = Uploads(GPU)
    frames = torch.rand(6, 270, 480, 4)
    for given in (frames, frames.half(), frames.to(GPU)):
        arrived = []
        for frame in given:
            with uploads.beside():
                copied = uploads.shared(uploads.copied(frame[..., :3]) + 0)
            arrived.append(copied)
        for frame, copied in zip(given, arrived, strict=True):
            assert copied.is_cuda and copied.dtype == torch.float32
            assert torch.equal(Download(copied).result(), frame[..., :3].float().cpu())

"""Frames on their way to the GPU and back."""

import torch

from i2v_tensorrt.pipeline.filters.transfers import Downloads, Uploads

GPU = torch.device("cuda", 0)


def test_frames_come_back_as_they_went_whatever_memory_they_lie_in() -> None:
    uploads, downloads = Uploads(GPU), Downloads()
    frames = torch.rand(6, 270, 480, 4)
    for given in (frames, frames.half(), frames.to(GPU)):
        arrived: list[torch.Tensor] = []
        for group in given.split(4):
            with uploads.beside():
                copied = uploads.shared(uploads.copied([frame[..., :3] for frame in group]) + 0)
            arrived += copied
        for frame, copied in zip(given, arrived, strict=True):
            assert copied.is_cuda and copied.dtype == torch.float32
            assert torch.equal(downloads.begin(copied).result(), frame[..., :3].float().cpu())


def test_what_is_queued_after_a_download_neither_waits_for_it_nor_spoils_it() -> None:
    downloads = Downloads()
    given = [torch.full((1080, 1920, 3), float(number), device=GPU) for number in range(4)]
    begun = [downloads.begin(images + 1) for images in given]  # whose memory the next may have
    for _ in range(20):
        torch.rand(1080, 1920, 3, device=GPU)
    for number, download in enumerate(begun):
        assert torch.equal(download.result(), torch.full((1080, 1920, 3), number + 1.0))

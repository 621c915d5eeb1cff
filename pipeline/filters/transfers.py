"""Frames to a device and back beside its work, on streams of their own and through page-locked memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ...common.page_locked import page_locked_empty


class Uploads:
    """Copies to a device; what is computed from them in its block runs on their stream too, beside other work."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._main = torch.cuda.current_stream(device) if device.type == "cuda" else None
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    @contextmanager
    def beside(self) -> Iterator[None]:
        """Runs the block's work on the uploads' stream and waits for it at the end; its tensors are then anyone's."""
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            yield
        self._stream.synchronize()

    def copied(self, frames: Sequence[Tensor]) -> Tensor:
        """The values of frames of one shape on the device, float32 [frames, ...]; to be called within `beside`.

        They go through page-locked memory, into which all threads copy: the driver takes ordinary memory with one.
        """
        if self._stream is None or frames[0].is_cuda:
            return torch.stack([frame.to(self.device, torch.float32) for frame in frames])
        staged = page_locked_empty((len(frames), *frames[0].shape), torch.float32)
        for place, frame in zip(staged, frames, strict=True):
            place.copy_(frame)
        return staged.to(self.device, non_blocking=True)

    def shared(self, tensor: Tensor) -> Tensor:
        """The tensor, whose memory stays until the main stream's work with it is done."""
        if self._main is not None:
            tensor.record_stream(self._main)
        return tensor


class Download:
    """Pictures on their way to the CPU; `result` waits for them."""

    def __init__(self, images: Tensor, arrived: torch.cuda.Event | None = None) -> None:
        self._images, self._arrived = images, arrived

    def result(self) -> Tensor:
        """The pictures in host memory."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return self._images


class Downloads:
    """Copies from a device into page-locked memory; work that is queued after one does not wait for it."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def begin(self, images: Tensor) -> Download:
        """Has pictures copied once they are there, whatever the current stream does next."""
        if not images.is_cuda:
            return Download(images)
        if self._stream is None:
            self._stream = torch.cuda.Stream(images.device)
        self._stream.wait_stream(torch.cuda.current_stream(images.device))
        images.record_stream(self._stream)
        with torch.cuda.stream(self._stream):
            copied = page_locked_empty(images.shape, images.dtype).copy_(images, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record(self._stream)
        return Download(copied, arrived)


def padded(images: Tensor, down: int, across: int) -> Tensor:
    """Images [n, 3, height, width], larger below and to the right: mirrored, or the edge held where they are small."""
    if not down and not across:
        return images
    mode = "reflect" if down < images.shape[-2] and across < images.shape[-1] else "replicate"
    return F.pad(images, (0, across, 0, down), mode=mode)

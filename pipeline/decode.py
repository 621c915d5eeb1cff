"""From latents to frames, in chunks that fit the memory there is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..common.errors import InputError
from ..common.out_of_memory import is_out_of_memory
from .filters.transfers import Download, Downloads
from .media.large_clip import empty_clip

BYTES_PER_PIXEL = 2250
"""Scratch memory of the published VAE's decoder, fp16, for each pixel of each frame decoded at once.

Measured on an H200 in eager PyTorch: 2048 for 8 frames at once, 2440 for one, from 256x256 to 2048x2048.
"""

DecodeChunk = Callable[[torch.Tensor], torch.Tensor]
"""From latents [n, channels, h, w] to images [frames, 3, height, width] in -1..1."""

OnChunk = Callable[[int, int], None]
"""Callback with the number of decoded frames and the number of all frames; may raise to stop."""

OnShortage = Callable[[int], bool]
"""Callback with the number of latent frames at which memory ran out; True when memory was freed for another attempt."""

MAX_ELEMENTS = (1 << 31) - 1
"""Greatest number of elements of a tensor: 32-bit indices and TensorRT count no more."""
WIDEST = 256
"""Channels that the published VAEs' decoders hold at full height and width."""


def most_at_once(height: int, width: int, channels: int = WIDEST) -> int:
    """Greatest number of frames of height x width (pixels) that a network takes at once, at least one.

    `channels` is the most that it holds at full height and width: by default a decoder's.
    """
    return max(1, MAX_ELEMENTS // (channels * height * width))


def scratch_bytes(height: int, width: int, frames: int) -> int:
    """Scratch memory in bytes, beside the weights, to decode `frames` frames of height x width (pixels) at once."""
    return BYTES_PER_PIXEL * height * width * frames


def chunk_size(free_bytes: int, height: int, width: int, frames: int) -> int:
    """Number of frames of height x width (pixels) to decode at once with `free_bytes` of scratch memory."""
    return max(1, min(frames, free_bytes // scratch_bytes(height, width, 1)))


def decode(
    latents: torch.Tensor,
    run: DecodeChunk,
    chunk: int,
    on_chunk: OnChunk,
    *,
    factor: int = 8,
    time_factor: int = 1,
    least: int = 1,
    on_shortage: OnShortage = lambda frames: False,
) -> torch.Tensor:
    """Frames [frames, height, width, 3], float32 in 0..1 on the CPU, from latents [n, channels, h, w].

    A latent frame gives `time_factor` frames, and where that is more than one the first, decoded alone, gives
    one. Out of memory halves the chunk (in latent frames), unless `on_shortage` has freed some, and goes on from
    there; with the `least` that a decoder takes at once it is raised.
    Raises InputError for a chunk of no frames.
    """
    if chunk < 1:
        raise InputError(f"The chunk is a whole number of frames from 1, found {chunk}.")
    chunk = max(least, chunk)
    count, _, height, width = latents.shape
    total = 1 + (count - 1) * time_factor
    frames = empty_clip(total, height * factor, width * factor)
    copies = _Copies(frames, lambda made: on_chunk(made, total))
    done = made = 0
    while done < count:
        part = latents[done : done + (1 if done == 0 and time_factor > 1 else chunk)]
        try:
            image = _to_unit(run(part))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if not on_shortage(len(part)):
                if len(part) <= least:
                    raise
                chunk = max(least, chunk // 2)
            continue
        done += len(part)
        made += len(image)
        copies.add(image, made)
    copies.finish()
    return frames


class _Copies:
    """Brings decoded chunks to the CPU, each while the GPU decodes the next."""

    def __init__(self, frames: torch.Tensor, on_copied: Callable[[int], None]) -> None:
        self._frames, self._on_copied = frames, on_copied
        self._downloads = Downloads()
        self._waiting: tuple[Download, int] | None = None

    def add(self, image: torch.Tensor, end: int) -> None:
        """Starts to copy the chunk that ends at frame `end`, and finishes the one before."""
        download = self._downloads.begin(image)
        self.finish()
        self._waiting = download, end
        if not image.is_cuda:
            self.finish()

    def finish(self) -> None:
        """Waits for the chunk that is on its way, if there is one."""
        if self._waiting is None:
            return
        (download, end), self._waiting = self._waiting, None
        image = download.result()
        self._frames[end - len(image) : end].copy_(image)
        self._on_copied(end)


def _to_unit(image: torch.Tensor) -> torch.Tensor:
    """-1..1 channels first to 0..1 channels last."""
    return (image.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

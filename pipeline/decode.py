"""From latents to frames, in chunks that fit the memory there is."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ..engine_builder.errors import InputError

BYTES_PER_PIXEL = 2600
"""Scratch memory of the published VAE's decoder, fp16, for each pixel of each frame decoded at once.

Its widest activations are 512 channels at half and 256 at full height and width; a handful are alive.
"""

DecodeChunk = Callable[[torch.Tensor], torch.Tensor]
"""From unscaled latents [frames, 4, h, w] to images [frames, 3, h*8, w*8] in -1..1."""

OnChunk = Callable[[int, int], None]
"""Told how many frames are decoded and how many there are; may raise to stop."""


def chunk_size(free_bytes: int, height: int, width: int, frames: int) -> int:
    """How many frames of height x width (pixels) to decode at once with `free_bytes` of scratch memory."""
    return max(1, min(frames, free_bytes // (BYTES_PER_PIXEL * height * width)))


def decode(latents: torch.Tensor, run: DecodeChunk, chunk: int, on_chunk: OnChunk, *, factor: int = 8) -> torch.Tensor:
    """Frames [frames, height, width, 3], float32 in 0..1 on the CPU, from unscaled latents [frames, 4, h, w].

    Out of memory halves the chunk and goes on from there; with one frame left it is raised. Raises
    InputError for a chunk of no frames.
    """
    if chunk < 1:
        raise InputError(f"The chunk is a whole number of frames from 1, found {chunk}.")
    count, _, height, width = latents.shape
    frames = torch.empty(count, height * factor, width * factor, 3)
    done = 0
    while done < count:
        part = latents[done : done + chunk]
        try:
            image = run(part)
        except torch.cuda.OutOfMemoryError:
            if chunk == 1:
                raise
            chunk //= 2
            continue
        frames[done : done + len(part)].copy_(_to_unit(image))
        done += len(part)
        on_chunk(done, count)
    return frames


def _to_unit(image: torch.Tensor) -> torch.Tensor:
    """-1..1 channels first to 0..1 channels last."""
    return (image.float() / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)

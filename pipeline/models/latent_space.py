"""Layout of a family's latents: their channels, the part of a clip that each stands for, and ComfyUI's form of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ...common.errors import InputError
from ..request import ClipSize

if TYPE_CHECKING:
    import torch

TUNED_CHUNK = 8
"""Frames decoded at once that a decoder's engine is tuned for."""


@dataclass(frozen=True)
class LatentSpace:
    """Latents of `channels`, each for `factor` pixels in height and in width.

    The first frame of latents is a frame of the clip, each later one is `time_factor` frames. Clips have sides
    that are multiples of `side_multiple` pixels, and from `min_frames` to `max_frames` frames. `format` is ComfyUI's
    name for the space; as a `video` its LATENT is [1, channels, frames, h, w], else [frames, channels, h, w].
    Decoders take at least `least_chunk` frames of latents at once.
    """

    channels: int = 4
    factor: int = 8
    time_factor: int = 1
    side_multiple: int = 8
    max_frames: int = 64
    format: str = "SD15"
    video: bool = False
    min_frames: int = 1
    least_chunk: int = 1

    def frames(self, num_frames: int) -> int:
        """Number of latent frames of a clip of `num_frames` frames."""
        return (num_frames - 1) // self.time_factor + 1

    def num_frames(self, frames: int) -> int:
        """Number of frames of a clip of `frames` latent frames."""
        return (frames - 1) * self.time_factor + 1

    def counts(self, num_frames: int) -> list[int]:
        """Numbers of frames that a clip may have, up to `num_frames`, the most first."""
        counts = map(self.num_frames, range(self.frames(num_frames), 0, -1))
        return [count for count in counts if count >= self.min_frames]

    def shape(self, width: int, height: int, num_frames: int) -> tuple[int, int, int, int]:
        """[frames, channels, h, w] of a clip of width x height (pixels)."""
        return (self.frames(num_frames), self.channels, height // self.factor, width // self.factor)

    def pack(self, x: torch.Tensor) -> torch.Tensor:
        """Latents [frames, channels, h, w] as a LATENT holds them."""
        return x.transpose(0, 1)[None] if self.video else x

    def unpack(self, latents: torch.Tensor) -> torch.Tensor:
        """A LATENT's tensor as [frames, channels, h, w]; raises InputError for one of another space."""
        shape = list(latents.shape)
        if self.video and len(shape) == 5 and shape[:2] == [1, self.channels]:
            return latents[0].transpose(0, 1)
        if not self.video and len(shape) == 4 and shape[1] == self.channels:
            return latents
        expected = f"1, {self.channels}, frames" if self.video else f"frames, {self.channels}"
        raise InputError(f"Expected latents as [{expected}, height, width], found {shape}.")

    def violation(self, title: str, width: int, height: int, num_frames: int) -> str | None:
        """A sentence on the first size that a clip of this space does not have, with the nearest that it has.

        Width and height in pixels; `title` is the family's name in the sentence.
        """
        for name, side in (("Width", width), ("Height", height)):
            if side % self.side_multiple:
                near = max(round(side / self.side_multiple), 1) * self.side_multiple
                return f"{name} is a multiple of {self.side_multiple} for {title}, found {side}: the nearest is {near}."
        if self.min_frames == self.max_frames != num_frames:
            return (
                f"{title} makes exactly {self.max_frames} frames, found {num_frames}: the nearest is {self.max_frames}."
            )
        if num_frames > self.max_frames:
            return f"{title} makes at most {self.max_frames} frames, found {num_frames}."
        below = self.num_frames(self.frames(num_frames))
        if below != num_frames:
            near = [below, below + self.time_factor]
            told = " and ".join(str(count) for count in near if count <= self.max_frames)
            return f"{title} makes a frame and then {self.time_factor} at a time, found {num_frames}: near are {told}."
        return None


def dims_of(latent: LatentSpace, size: ClipSize) -> dict[str, int]:
    """Named sizes of a clip in latents; `chunk` is the one that decoders are tuned for."""
    frames = latent.frames(size.num_frames)
    return {
        "frames": frames,
        "latent_height": size.height // latent.factor,
        "latent_width": size.width // latent.factor,
        "chunk": max(latent.least_chunk, min(frames, TUNED_CHUNK)),
    }

"""Frames of a clip on one picture: ComfyUI previews pictures only, and the page's script plays them from it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ...pipeline.media.frames import evenly_chosen

MOST_FRAMES = 9
"""Each is decoded at every step."""


@dataclass(frozen=True)
class Sheet:
    """Frames in rows, from the upper left; `seconds` is how long the clip plays."""

    columns: int
    rows: int
    frames: int
    seconds: float

    @classmethod
    def of_clip(cls, frames: int, seconds: float) -> Sheet:
        """The sheet for `frames` frames of latents, as square as the count allows."""
        count = min(MOST_FRAMES, frames)
        columns = math.ceil(math.sqrt(count))
        return cls(columns, math.ceil(count / columns), count, seconds)

    def lay(self, latents: torch.Tensor) -> torch.Tensor:
        """Evenly chosen ones of the latents [frames, channels, h, w] as [1, channels, rows * h, columns * w].

        Places without a frame are zero.
        """
        channels, height, width = latents.shape[1:]
        places = latents.new_zeros(self.rows * self.columns, channels, height, width)
        places[: self.frames] = latents[evenly_chosen(len(latents), self.frames)]
        grid = places.reshape(self.rows, self.columns, channels, height, width).permute(2, 0, 3, 1, 4)
        return grid.reshape(1, channels, self.rows * height, self.columns * width)

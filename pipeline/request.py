"""Request for one clip, and its encoded form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import PIL.Image
    import torch


class ClipSize(NamedTuple):
    """A clip's sides in pixels, and its frames."""

    width: int
    height: int
    num_frames: int

    def __str__(self) -> str:
        return "x".join(map(str, self))

    @property
    def words(self) -> str:
        """The size within a sentence, such as `512x512 with 16 frames`."""
        return f"{self.width}x{self.height} with {self.num_frames} {'frame' if self.num_frames == 1 else 'frames'}"


@dataclass(frozen=True)
class ClipRequest:
    """Request for one clip: a picture in RGB, width and height in pixels, `fps` in frames per second.

    Fields that a family does not use are named in its `unused`. `noise_aug_strength` is the standard deviation of
    the noise laid over the picture in -1..1, drawn from `noise_aug_seed`. `last_picture`, in RGB too, is what the clip
    ends in.
    """

    picture: PIL.Image.Image
    prompt: str
    negative_prompt: str
    width: int
    height: int
    num_frames: int
    fps: int
    motion_bucket_id: int = 127
    noise_aug_strength: float = 0.02
    noise_aug_seed: int = 0
    last_picture: PIL.Image.Image | None = None

    @property
    def size(self) -> ClipSize:
        """Sides in pixels, and frames."""
        return ClipSize(self.width, self.height, self.num_frames)


@dataclass(frozen=True)
class Encoded:
    """A request as tensors that stay the same for the whole clip.

    The first axis is the guidance branch: 2 (unconditional, conditional) for a tensor that differs
    between them, 1 for one that does not. `notes` are sentences for the user.
    """

    tensors: Mapping[str, torch.Tensor]
    notes: tuple[str, ...] = ()

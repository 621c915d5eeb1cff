"""Frames on their way from floats to a file: checks, play order, 8-bit RGB and BT.709 planes."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from ...common.errors import InputError

# Luma weights of red, green and blue in BT.709 (ITU-R BT.709-6, item 3.2).
KR, KG, KB = 0.2126, 0.7152, 0.0722
_RGB_TO_YCBCR = torch.tensor(
    [
        [KR, KG, KB],
        [-KR / (2 * (1 - KB)), -KG / (2 * (1 - KB)), 0.5],
        [0.5, -KG / (2 * (1 - KR)), -KB / (2 * (1 - KR))],
    ]
)


@dataclass(frozen=True)
class Clip:
    """Frames in the order in which they play, converted one at a time so that a long clip is never copied.

    `frames` is floating point [frames, height, width, channels] from 0 to 1 with 1 (grey), 3 (RGB) or 4
    (RGBA) channels; `order` holds indices into it. With `keeps_alpha` the transparency goes into the file.
    """

    frames: Tensor
    order: Sequence[int]
    keeps_alpha: bool = False

    def __len__(self) -> int:
        return len(self.order)

    @property
    def height(self) -> int:
        """Height of a frame in pixels."""
        return self.frames.shape[1]

    @property
    def width(self) -> int:
        """Width of a frame in pixels."""
        return self.frames.shape[2]

    @property
    def has_alpha(self) -> bool:
        """Whether the frames carry transparency."""
        return self.frames.shape[3] == 4

    def rgb(self, position: int) -> Tensor:
        """The frame at `position` of the order: float32 [height, width, 3], clamped to 0..1.

        Grey is repeated; transparency is laid over black, as a player shows it behind a video.

        Raises:
            InputError: the frame holds NaN or infinity.
        """
        frame = self._frame(position)
        return over_black(frame) if self.has_alpha else frame.expand(-1, -1, 3)

    def picture(self, position: int) -> Tensor:
        """The frame as it goes into the file: as `rgb`, or [height, width, 4] with `keeps_alpha`."""
        return self._frame(position) if self.keeps_alpha else self.rgb(position)

    def pictures(self) -> Iterator[Tensor]:
        """Every frame as it plays, see `picture`."""
        return map(self.picture, range(len(self)))

    def _frame(self, position: int) -> Tensor:
        index = self.order[position]
        frame = self.frames[index].detach().float()
        if not all(torch.isfinite(extreme) for extreme in frame.aminmax()):  # a NaN is both
            raise InputError(f"Frames must hold finite values, but frame {index} holds NaN or infinity.")
        return frame.clamp(0, 1)


@dataclass(frozen=True)
class StreamedClip:
    """Frames that come one by one and are not kept, about `expected`: float32 [height, width, 3] from 0 to 1."""

    source: Iterable[Tensor]
    height: int
    width: int
    expected: int
    keeps_alpha: bool = False

    def __len__(self) -> int:
        return self.expected

    def pictures(self) -> Iterator[Tensor]:
        """Every frame, once."""
        return iter(self.source)


def make_clip(frames: Tensor, *, pingpong: bool = False, keep_alpha: bool = False) -> Clip:
    """Checks `frames` (see `Clip`) and puts them in order; with `pingpong`, forward and then backward.

    With `keep_alpha` frames that have transparency keep it.

    Raises:
        InputError: not a floating-point tensor, a wrong rank or number of channels, no frames, no pixels.
    """
    if not isinstance(frames, Tensor):
        raise InputError(f"Frames must be a tensor, but they are {type(frames).__name__}.")
    shape = list(frames.shape)
    if frames.ndim != 4:
        raise InputError(f"Frames must have the shape [frames, height, width, channels], but it is {shape}.")
    if not frames.is_floating_point():
        raise InputError(f"Frames must be floating point from 0 to 1, but they are {frames.dtype}.")
    if 0 in shape[:3]:
        raise InputError(f"A video needs at least one frame of at least one pixel, but the shape is {shape}.")
    if shape[3] not in (1, 3, 4):
        raise InputError(f"Frames must have 1, 3 or 4 channels, but they have {shape[3]}.")
    return Clip(frames, play_order(shape[0], pingpong=pingpong), keep_alpha and shape[3] == 4)


def over_black(frames: Tensor) -> Tensor:
    """[..., 4] with straight alpha -> [..., 3] as it looks over black."""
    return frames[..., :3] * frames[..., 3:]


def play_order(num_frames: int, *, pingpong: bool) -> Sequence[int]:
    """Indices of the frames as they play; a pingpong shows the first and the last frame once each."""
    if not pingpong:
        return range(num_frames)
    return [*range(num_frames), *range(num_frames - 2, 0, -1)]


def evenly_chosen(num_frames: int, count: int) -> list[int]:
    """At most `count` different indices of `num_frames`, evenly spread from the first to the last."""
    count = min(count, num_frames)
    if count == 1:
        return [0]
    return [round(step * (num_frames - 1) / (count - 1)) for step in range(count)]


def to_rgb8(frame: Tensor) -> np.ndarray:
    """float [height, width, 3 | 4] from 0 to 1 -> uint8 of the same shape on the CPU, rounded to nearest."""
    return (frame * 255).round().to(torch.uint8).cpu().contiguous().numpy()


def pad_to_even(frame: Tensor) -> Tensor:
    """[height, width, channels] with the last row and column repeated where the height or width is odd."""
    height, width, _ = frame.shape
    if height % 2 == width % 2 == 0:
        return frame
    planes = frame.movedim(-1, 0).unsqueeze(0)
    padded = functional.pad(planes, (0, width % 2, 0, height % 2), mode="replicate")
    return padded.squeeze(0).movedim(0, -1)


def to_yuv420(frame: Tensor) -> np.ndarray:
    """RGB in BT.709 colours -> limited-range 4:2:0 planes, as ITU-R BT.709-6 and H.273 define them.

    `frame` is float [height, width, 3 | 4] from 0 to 1 with even sizes; the result is uint8 [height * 3 / 2, width] on
    the CPU, the planes one after the other as PyAV's "yuv420p" wants them, with transparency [height * 5 / 2, width]:
    the opacity, of full range, comes last.
    Done here and not by swscale, which goes through 8-bit RGB and whose matrix depends on the version.
    """
    height, width, _ = frame.shape
    # Plane by plane, and sums in place of pooling: on a CPU a tenth of the time.
    colours, opacity = frame[..., :3], frame[..., 3:]
    y, *chroma = _RGB_TO_YCBCR.to(frame) @ colours.movedim(-1, 0).flatten(1)
    pairs = torch.stack(chroma).reshape(2, height // 2, 2, width // 2, 2)
    rows = pairs[:, :, 0] + pairs[:, :, 1]
    halved = (rows[..., 0] + rows[..., 1]) / 4
    planes = torch.cat([16 + 219 * y, 128 + 224 * halved.flatten(), 255 * opacity.flatten()])
    return planes.round().to(torch.uint8).cpu().reshape(-1, width).numpy()

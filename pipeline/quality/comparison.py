"""Two clips of one size beside each other: figures, a clip of both, and a clip of where they differ."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from ...common.errors import InputError
from ..media.frames import Clip, make_clip
from ..media.image import to_unit_tensor
from .metrics import SSIM_WINDOW, psnr, ssim, temporal_flicker

GAP = 8
"""Pixels between two frames side by side; even, as most video formats want sides to be."""
LABEL_SHARE, MIN_LABEL_HEIGHT = 16, 20
BACKGROUND, LABEL_COLOUR = (24, 24, 28), (240, 240, 245)
HEAT = ((0.0, 0.0, 0.0), (0.28, 0.07, 0.48), (0.78, 0.19, 0.35), (0.98, 0.58, 0.16), (1.0, 1.0, 0.75))
"""From no difference to the greatest, evenly spaced: each brighter than the one before it."""

OnFrame = Callable[[int, int], None]
"""Callback with the number of frames done and the number of all frames."""


@dataclass(frozen=True)
class Comparison:
    """Figures of two clips. PSNR in dB, infinite for equal frames; `ssim` is empty for frames below 7x7 pixels.

    `greatest` is the largest difference of a value in 0..1, first found in frame `frame` at pixel (`x`, `y`).
    `flicker` has one figure a clip, 1 for a still one, or None for a single frame.
    """

    num_frames: int
    width: int
    height: int
    psnr_db: tuple[float, ...]
    ssim: tuple[float, ...]
    flicker: tuple[float | None, float | None]
    greatest: float
    frame: int
    x: int
    y: int

    @property
    def whole_psnr_db(self) -> float:
        """PSNR of all frames as one: that of their mean squared errors' mean."""
        mean = sum(10 ** (-value / 10) for value in self.psnr_db) / self.num_frames
        return -10 * math.log10(mean) if mean else math.inf


def make_pair(one: Tensor, other: Tensor) -> tuple[Clip, Clip]:
    """Two clips [frames, height, width, 1 | 3 | 4] in 0..1 that can be compared frame by frame.

    Raises InputError when they are no clips, or not of one size and count.
    """
    pair = make_clip(one), make_clip(other)
    if one.shape[:3] != other.shape[:3]:
        told = " and ".join(f"{len(clip)} frames of {clip.width}x{clip.height}" for clip in pair)
        raise InputError(f"Expected two clips of one size and of as many frames, found {told}.")
    return pair


def compare(one: Clip, other: Clip, on_frame: OnFrame) -> Comparison:
    """Measures how two clips of `make_pair` differ; raises InputError for a frame that is not finite."""
    decibels, similarity, greatest, place = [], [], -1.0, (0, 0, 0)
    for index in range(len(one)):
        a, b = one.rgb(index), other.rgb(index)
        decibels.append(psnr(a, b))
        if min(one.width, one.height) >= SSIM_WINDOW:
            similarity.append(ssim(a, b))
        apart = _apart(a, b)
        most = apart.max().item()
        if most > greatest:
            y, x = divmod(int(apart.argmax()), one.width)
            greatest, place = most, (index, x, y)
        on_frame(index + 1, len(one))
    flicker = _flicker(one), _flicker(other)
    sizes = len(one), one.width, one.height
    return Comparison(*sizes, tuple(decibels), tuple(similarity), flicker, greatest, *place)


def side_by_side(one: Clip, other: Clip, labels: tuple[str, str]) -> Tensor:
    """Both clips in one, float32 [frames, height + strip, 2 * width + 8, 3]; without labels there is no strip."""
    strip = _strip(labels, one.width, one.height)
    left = len(strip), one.width + GAP
    whole = torch.empty(len(one), one.height + left[0], one.width + left[1], 3)
    whole[:] = torch.tensor(BACKGROUND) / 255
    whole[:, : left[0]] = strip
    for index in range(len(one)):
        whole[index, left[0] :, : one.width] = one.rgb(index)
        whole[index, left[0] :, left[1] :] = other.rgb(index)
    return whole


def heat_map(one: Clip, other: Clip, brightest: float) -> Tensor:
    """Two clips' difference, float32 [frames, height, width, 3]: black where equal, pale yellow from `brightest` on.

    A pixel's difference is the greatest of its channels; `brightest` is one of those, above 0.
    """
    stops, last = torch.tensor(HEAT), len(HEAT) - 1
    whole = torch.empty(len(one), one.height, one.width, 3)
    for index in range(len(one)):
        place = (_apart(one.rgb(index), other.rgb(index)) / brightest).clamp(0, 1) * last
        below = place.floor().clamp(max=last - 1).long()
        whole[index] = torch.lerp(stops[below], stops[below + 1], (place - below)[..., None])
    return whole


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """The greatest difference over the channels, [height, width]."""
    return (a - b).abs().amax(dim=-1).cpu()


def _flicker(clip: Clip) -> float | None:
    return temporal_flicker(torch.stack([clip.rgb(n) for n in range(len(clip))])) if len(clip) > 1 else None


def _strip(labels: tuple[str, str], width: int, height: int) -> Tensor:
    """The labels over their clips, float32 [strip, 2 * width + 8, 3]; without any, no rows."""
    whole = 2 * width + GAP
    if not any(label.strip() for label in labels):
        return torch.empty(0, whole, 3)
    tall = max(MIN_LABEL_HEIGHT, height // LABEL_SHARE // 2 * 2)
    image = Image.new("RGB", (whole, tall), BACKGROUND)
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(tall * 0.6)
    for label, left in zip(labels, (0, width + GAP), strict=True):
        text = _fitting(" ".join(label.split()), width - 2 * GAP, font.getlength)
        draw.text((left + GAP, tall / 2), text, LABEL_COLOUR, font, anchor="lm")
    return to_unit_tensor(image)[0].movedim(0, -1)


def _fitting(text: str, width: float, length: Callable[[str], float]) -> str:
    """The text, cut where it would not fit."""
    while text and length(text) > width:
        text = text.removesuffix("…")[:-1].rstrip() + "…" if len(text) > 1 else ""
    return text

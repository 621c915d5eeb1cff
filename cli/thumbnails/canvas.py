"""What the pictures of the workflows are drawn with: frames, words, arrows and marks on a square."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import atan2, cos, pi, sin
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

from ...common.errors import InputError

SIDE = 480
"""The edge of a finished picture, in pixels, and the unit of everything that is drawn."""
FINER = 2
"""The canvas is drawn as many times larger, so that edges are smooth."""

WHITE, INK, PANEL = "#ffffff", "#11131a", "#181b24"
GREEN, AMBER, SKY = "#2f9e5b", "#e0952b", "#59b8ff"

FONTS = {
    "latin": ("/usr/share/fonts/opentype/inter/Inter-Bold.otf", 0),
    "chinese": ("/usr/share/fonts/opentype/noto/NotoSansCJK-Bold.ttc", 2),  # the third of the file is Simplified
}
"""Files of Debian's packages fonts-inter and fonts-noto-cjk, and the place of the font in its file."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom."""
Point = tuple[float, float]
Anchor = Literal["lm", "mm", "rm"]


def font(words: str, size: float) -> ImageFont.FreeTypeFont:
    """The font that has the letters of these words, `size` high; raises InputError when it is not installed."""
    return _font("latin" if words.isascii() or not any("\u2e80" <= each for each in words) else "chinese", size)


@cache
def _font(script: str, size: float) -> ImageFont.FreeTypeFont:
    path, place = FONTS[script]
    if not Path(path).is_file():
        raise InputError(f"Expected the font {path}, found none: install fonts-inter and fonts-noto-cjk.")
    return ImageFont.truetype(path, round(size * FINER), index=place)


class Canvas:
    """A square of SIDE by SIDE, whose origin is at the upper left."""

    def __init__(self, colour: str) -> None:
        self._image = Image.new("RGB", (SIDE * FINER, SIDE * FINER), colour)
        self._draw = ImageDraw.Draw(self._image, "RGBA")

    def finished(self) -> Image.Image:
        """The picture in its own size."""
        return self._image.resize((SIDE, SIDE), Resampling.LANCZOS)

    def picture(self, box: Box, image: Image.Image, radius: float = 0, edge: str = "", width: float = 3) -> None:
        """An image that fills the box, cut where it does not fit; with an edge in that colour."""
        left, top, right, bottom = (round(each * FINER) for each in box)
        size = (right - left, bottom - top)
        mask = Image.new("L", size, 0)
        ImageDraw.Draw(mask).rounded_rectangle((0, 0, size[0] - 1, size[1] - 1), radius * FINER, fill=255)
        self._image.paste(_filling(image, size), (left, top), mask)
        if edge:
            self.box(box, outline=edge, radius=radius, width=width)

    def box(self, box: Box, fill: str | None = None, outline: str = "", radius: float = 0, width: float = 3) -> None:
        """A rectangle, round at its corners; a colour may have an opacity behind it, as #rrggbbaa."""
        scaled = tuple(each * FINER for each in box)
        line = round(width * FINER) if outline else 0
        self._draw.rounded_rectangle(scaled, radius * FINER, fill, outline or None, line)

    def dashed(self, box: Box, colour: str, width: float = 3, dash: float = 12) -> None:
        """A rectangle of dashes."""
        left, top, right, bottom = box
        for start, end in (
            ((left, top), (right, top)),
            ((right, top), (right, bottom)),
            ((right, bottom), (left, bottom)),
            ((left, bottom), (left, top)),
        ):
            length = abs(end[0] - start[0]) + abs(end[1] - start[1])
            for at in range(0, round(length / dash), 2):
                self.line([_between(start, end, at * dash / length) for at in (at, at + 1)], colour, width)

    def line(self, points: Sequence[Point], colour: str, width: float = 3) -> None:
        """A line from point to point."""
        scaled = [(x * FINER, y * FINER) for x, y in points]
        self._draw.line(scaled, colour, round(width * FINER), joint="curve")

    def arrow(self, points: Sequence[Point], colour: str = WHITE, width: float = 7) -> None:
        """A line from point to point with a head at its end, and a dark rim so that it stands out on a picture."""
        for each, more in ((INK, 4), (colour, 0)):
            (x, y), (end_x, end_y) = points[-2:]
            angle, head = atan2(end_y - y, end_x - x), width * 1.9 + more
            tip = [(end_x + r * cos(angle + turn), end_y + r * sin(angle + turn)) for r, turn in _head(head)]
            self.line([*points[:-1], (end_x - 2 * cos(angle), end_y - 2 * sin(angle))], each, width + more)
            self.shape(tip, each)

    def arc(self, centre: Point, radius: float, degrees: tuple[float, float], colour: str, width: float) -> None:
        """A part of a circle, clockwise from the right."""
        x, y = centre
        box = tuple(each * FINER for each in (x - radius, y - radius, x + radius, y + radius))
        self._draw.arc(box, *degrees, fill=colour, width=round(width * FINER))

    def disc(self, centre: Point, radius: float, fill: str, outline: str = "", width: float = 3) -> None:
        """A circle."""
        x, y = centre
        self.box((x - radius, y - radius, x + radius, y + radius), fill, outline, radius, width)

    def shape(self, points: Sequence[Point], fill: str) -> None:
        """A polygon."""
        self._draw.polygon([(x * FINER, y * FINER) for x, y in points], fill)

    def words(
        self, at: Point, words: str, size: float, colour: str = WHITE, anchor: Anchor = "mm", rim: float = 0
    ) -> None:
        """A line of text, with a dark rim of that width where it stands on a picture."""
        place = (at[0] * FINER, at[1] * FINER)
        style = {"stroke_width": round(rim * FINER), "stroke_fill": INK} if rim else {}
        self._draw.text(place, words, colour, font(words, size), anchor=anchor, **style)

    def play(self, centre: Point, radius: float) -> None:
        """The mark of something that plays."""
        x, y = centre
        self.disc(centre, radius, "#11131ab0", WHITE, radius / 9)
        points = [(0.5, 0), (-0.28, -0.46), (-0.28, 0.46)]
        self.shape([(x + radius * across, y + radius * down) for across, down in points], WHITE)


def width_of(words: str, size: float) -> float:
    """How wide a line of text is."""
    return font(words, size).getlength(words) / FINER


def _filling(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    scale = max(size[0] / image.width, size[1] / image.height)
    across, down = size[0] / scale, size[1] / scale
    left, top = (image.width - across) / 2, (image.height - down) / 2
    return image.resize(size, Resampling.LANCZOS, box=(left, top, left + across, top + down))


def _between(start: Point, end: Point, share: float) -> Point:
    share = min(share, 1.0)
    return (start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1]))


def _head(size: float) -> tuple[Point, Point, Point]:
    """An arrow's head by radius and turn."""
    return ((size, 0.0), (size, 0.72 * pi), (size, -0.72 * pi))

"""A card to draw on with Pillow alone: drawn larger and scaled down, so that edges are smooth.

The card has a background of its own and clear corners, so that it is legible on a light and on a dark page.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from ...common.atomic_file import atomic_file

Colour = tuple[int, int, int]

CARD: Colour = (250, 250, 252)
EDGE: Colour = (208, 212, 220)
GRID: Colour = (228, 231, 237)
INK: Colour = (28, 32, 40)
SOFT: Colour = (98, 106, 120)
ACCENT: Colour = (15, 110, 86)
_OVERSAMPLING = 2
_MARGIN, _RADIUS = 6, 26


class Card:
    """A drawing in pixels of the finished picture."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        size = (width * _OVERSAMPLING, height * _OVERSAMPLING)
        self._image = Image.new("RGBA", size, (*CARD, 0))
        self._pen = ImageDraw.Draw(self._image)
        edges = (*_up((_MARGIN, _MARGIN)), *_up((width - _MARGIN, height - _MARGIN)))
        self._pen.rounded_rectangle(edges, _RADIUS * _OVERSAMPLING, CARD, EDGE, 2 * _OVERSAMPLING)

    def text(
        self,
        place: tuple[float, float],
        text: str,
        size: int,
        colour: Colour = INK,
        *,
        anchor: str = "lm",
        strong: bool = False,
    ) -> None:
        """Writes a line; `anchor` is Pillow's."""
        stroke = max(1, round(size * _OVERSAMPLING / 40)) if strong else 0
        self._pen.text(_up(place), text, colour, _font(size), anchor=anchor, stroke_width=stroke, stroke_fill=colour)

    def text_width(self, text: str, size: int) -> float:
        """Width of a line of text."""
        return _font(size).getlength(text) / _OVERSAMPLING

    def box(self, edges: tuple[float, float, float, float], colour: Colour, radius: float = 0) -> None:
        """Fills left, top, right, bottom."""
        left, top, right, bottom = (edge * _OVERSAMPLING for edge in edges)
        if right - left >= 1:
            radius = min(radius * _OVERSAMPLING, (right - left) / 2)
            self._pen.rounded_rectangle((left, top, right - 1, bottom - 1), radius, colour)

    def line(self, points: list[tuple[float, float]], colour: Colour, width: float = 1.5) -> None:
        """A line through points; one point is none."""
        if len(points) > 1:
            self._pen.line([_up(point) for point in points], colour, round(width * _OVERSAMPLING), joint="curve")

    def dot(self, place: tuple[float, float], radius: float, colour: Colour, fill: Colour | None = None) -> None:
        """A disc, or with `fill` a ring around another colour."""
        x, y = _up(place)
        reach = radius * _OVERSAMPLING
        box = (x - reach, y - reach, x + reach, y + reach)
        self._pen.ellipse(box, fill or colour, colour, round(1.6 * _OVERSAMPLING))

    def save(self, path: Path) -> None:
        """Writes the picture as PNG."""
        scaled = self._image.resize((self.width, self.height), Image.Resampling.LANCZOS)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            scaled.save(temporary, "PNG", optimize=True)


def ticks(top: float, count: int = 5) -> list[float]:
    """Round numbers from 0 up to at most `top`, about `count` steps."""
    if top <= 0:
        return [0.0]
    raw = top / count
    unit = 10.0 ** len(str(int(raw))) / 10 if raw >= 1 else 1.0
    while unit > raw:
        unit /= 10
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10) if unit * factor >= raw)
    return [step * number for number in range(int(top / step + 1e-9) + 1)]


def _up(place: tuple[float, float]) -> tuple[float, float]:
    return place[0] * _OVERSAMPLING, place[1] * _OVERSAMPLING


def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size * _OVERSAMPLING)
    if not isinstance(font, ImageFont.FreeTypeFont):  # Pillow without FreeType has one small font of pixels
        raise OSError("Pillow has no FreeType here, expected it for the picture")
    return font

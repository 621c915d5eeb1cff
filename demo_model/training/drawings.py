"""Small things with fine parts, and letters, as signed distance fields: boats, houses, trees, faces drawn in lines.

A drawing has three layers, each of a colour of its own: hull, sails and mast. Captions do not name them; they are
what a picture holds besides, and what the networks are to keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import cos, pi, sin

import torch
from torch import Tensor

from .glyphs import SPAN

SIZE = 128
"""Edge of a field in pixels; it covers [-SPAN, SPAN], the drawing about [-1, 1]."""
LAYERS = 3
NOTHING = 1.0
"""A field that covers nothing."""

Point = tuple[float, float]
Path = Sequence[Point]


class Sheet:
    """The points of a field, and the distances of simple things from them, negative inside."""

    def __init__(self) -> None:
        line = ((torch.arange(SIZE) + 0.5) / SIZE * 2 - 1) * SPAN
        self.y, self.x = torch.meshgrid(line, line, indexing="ij")

    def nothing(self) -> Tensor:
        """A layer that covers no point."""
        return torch.full_like(self.x, NOTHING)

    def line(self, points: Path, width: float) -> Tensor:
        """A path with round ends, `width` to either side."""
        pairs = zip(points[:-1], points[1:], strict=True)
        return torch.stack([self._segment(a, b) for a, b in pairs]).amin(0) - width

    def polygon(self, points: Path) -> Tensor:
        """The inside of a closed path."""
        closed = [*points, points[0]]
        pairs = list(zip(closed[:-1], closed[1:], strict=True))
        inside = torch.zeros_like(self.x, dtype=torch.bool)
        for (ax, ay), (bx, by) in pairs:
            if ay == by:
                continue
            crosses = (self.y < ay) != (self.y < by)
            inside ^= crosses & (self.x < ax + (self.y - ay) * (bx - ax) / (by - ay))
        distance = torch.stack([self._segment(a, b) for a, b in pairs]).amin(0)
        return torch.where(inside, -distance, distance)

    def box(self, left: float, top: float, right: float, bottom: float) -> Tensor:
        """An upright rectangle."""
        return self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)])

    def oval(self, x: float, y: float, wide: float, high: float) -> Tensor:
        """An ellipse with these half-axes."""
        return (torch.hypot((self.x - x) / wide, (self.y - y) / high) - 1) * min(wide, high)

    def _segment(self, a: Point, b: Point) -> Tensor:
        dx, dy = b[0] - a[0], b[1] - a[1]
        length = max(dx * dx + dy * dy, 1e-9)
        along = (((self.x - a[0]) * dx + (self.y - a[1]) * dy) / length).clamp(0, 1)
        return torch.hypot(self.x - a[0] - along * dx, self.y - a[1] - along * dy)


def union(*parts: Tensor) -> Tensor:
    """What any of them covers."""
    return torch.stack(parts).amin(0)


def arc(x: float, y: float, radius: float, start: float, end: float, count: int = 12) -> list[Point]:
    """A path along a circle; angles in turns, clockwise from the right."""
    angles = [2 * pi * (start + (end - start) * k / count) for k in range(count + 1)]
    return [(x + radius * cos(angle), y + radius * sin(angle)) for angle in angles]


Drawing = tuple[Tensor, Tensor, Tensor]


def _boat(on: Sheet) -> Drawing:
    sails = union(
        on.polygon([(0.06, -0.95), (0.06, 0.36), (0.72, 0.36)]),
        on.polygon([(-0.06, -0.7), (-0.06, 0.36), (-0.6, 0.36)]),
    )
    return (
        on.polygon([(-0.85, 0.45), (0.85, 0.45), (0.55, 0.82), (-0.55, 0.82)]),
        sails,
        on.line([(0, -1), (0, 0.5)], 0.03),
    )


def _house(on: Sheet) -> Drawing:
    panes = [on.box(x, y, x + 0.28, y + 0.3) for x in (-0.55, 0.27) for y in (-0.02, 0.5)]
    roof = on.polygon([(-0.95, -0.2), (0, -0.95), (0.95, -0.2)])
    return on.box(-0.75, -0.25, 0.75, 0.95), roof, union(*panes, on.box(-0.12, 0.42, 0.14, 0.95))


def _fir(on: Sheet) -> Drawing:
    tiers = [
        on.polygon([(0, top), (half, top + 0.7), (-half, top + 0.7)])
        for top, half in ((-1, 0.35), (-0.55, 0.5), (-0.1, 0.65))
    ]
    return on.box(-0.08, 0.5, 0.08, 1), union(*tiers), on.nothing()


def _branches(start: Point, angle: float, length: float, depth: int) -> list[tuple[Path, float]]:
    """The lines of a branch and of all that grow from it, with their widths."""
    end = (start[0] + length * cos(angle), start[1] + length * sin(angle))
    lines: list[tuple[Path, float]] = [([start, end], 0.012 * (depth + 1) ** 1.3)]
    if depth:
        for turn, share in ((-0.48, 0.74), (0.4, 0.7), (0.06, 0.55)):
            lines += _branches(end, angle + turn, length * share, depth - 1)
    return lines


def _bare_tree(on: Sheet) -> Drawing:
    lines = _branches((0.0, 1.0), -pi / 2, 0.62, 4)
    return union(*(on.line(path, width) for path, width in lines)), on.nothing(), on.nothing()


def _leafy_tree(on: Sheet) -> Drawing:
    lines = _branches((0.0, 1.0), -pi / 2, 0.6, 2)
    leaves = [on.oval(path[-1][0], path[-1][1], 0.24, 0.2) for path, width in lines if width < 0.02]
    return union(*(on.line(path, width) for path, width in lines)), union(*leaves), on.nothing()


def _face(on: Sheet) -> Drawing:
    eyes = [on.oval(x, -0.1, 0.09, 0.06) for x in (-0.32, 0.32)]
    brows = [on.line(arc(x, 0.1, 0.4, 0.66, 0.84), 0.025) for x in (-0.32, 0.32)]
    nose = on.line([(0.02, -0.1), (-0.1, 0.25), (0.06, 0.27)], 0.025)
    mouth = on.line(arc(0, 0.25, 0.32, 0.08, 0.42), 0.035)
    hair = torch.maximum(on.oval(0, -0.15, 0.85, 0.85), -on.oval(0, 0.15, 0.68, 0.75))
    return on.oval(0, 0.1, 0.7, 0.88), torch.maximum(hair, on.y - 0.45), union(*eyes, *brows, nose, mouth)


def _outlined_face(on: Sheet) -> Drawing:
    eyes = [on.line(arc(x, -0.15, 0.14, 0, 1), 0.025) for x in (-0.32, 0.32)]
    pupils = [on.oval(x, -0.15, 0.05, 0.05) for x in (-0.28, 0.36)]
    outline = on.line(arc(0, 0, 0.85, 0, 1, 32), 0.035)
    return on.oval(0, 0, 0.85, 0.85), outline, union(*eyes, *pupils, on.line(arc(0, 0.1, 0.45, 0.06, 0.44), 0.03))


def _car(on: Sheet) -> Drawing:
    body = union(on.box(-0.95, 0, 0.95, 0.45), on.polygon([(-0.6, 0), (-0.4, -0.45), (0.35, -0.45), (0.6, 0)]))
    glass = union(
        on.polygon([(-0.48, -0.02), (-0.34, -0.36), (-0.04, -0.36), (-0.04, -0.02)]),
        on.polygon([(0.06, -0.02), (0.06, -0.36), (0.3, -0.36), (0.46, -0.02)]),
    )
    return body, glass, union(on.oval(-0.5, 0.48, 0.22, 0.22), on.oval(0.5, 0.48, 0.22, 0.22))


def _balloon(on: Sheet) -> Drawing:
    ropes = [on.line([(x, 0.2), (x / 3, 0.75)], 0.015) for x in (-0.45, 0.45)]
    round_ = on.oval(0, -0.3, 0.65, 0.68)
    stripes = torch.maximum(round_, union(on.oval(0, -0.3, 0.2, 0.7), (on.oval(0, -0.3, 0.5, 0.7)).abs() - 0.06))
    return round_, stripes, union(*ropes, on.box(-0.16, 0.75, 0.16, 0.98))


def _flower(on: Sheet) -> Drawing:
    petals = [on.oval(0.42 * cos(k * pi / 3), -0.4 + 0.42 * sin(k * pi / 3), 0.24, 0.24) for k in range(6)]
    stem = union(on.line([(0, 0), (0.04, 1)], 0.04), on.oval(0.25, 0.6, 0.22, 0.08))
    return stem, union(*petals), on.oval(0, -0.4, 0.2, 0.2)


def _birds(on: Sheet) -> Drawing:
    wings = [
        on.line(
            [
                (x - 0.32 * s, y - 0.16 * s),
                (x - 0.1 * s, y - 0.2 * s),
                (x, y),
                (x + 0.1 * s, y - 0.2 * s),
                (x + 0.32 * s, y - 0.16 * s),
            ],
            0.03 * s,
        )
        for x, y, s in ((-0.5, -0.4, 1.0), (0.3, -0.1, 1.3), (-0.2, 0.5, 0.8))
    ]
    return union(*wings), on.nothing(), on.nothing()


def _person(on: Sheet) -> Drawing:
    legs = union(on.line([(0, 0.25), (-0.22, 0.95)], 0.09), on.line([(0, 0.25), (0.22, 0.95)], 0.09))
    shirt = union(
        on.polygon([(-0.28, -0.45), (0.28, -0.45), (0.2, 0.3), (-0.2, 0.3)]),
        on.line([(-0.28, -0.38), (-0.5, 0.15)], 0.07),
        on.line([(0.28, -0.38), (0.62, -0.6)], 0.07),
    )
    return legs, shirt, on.oval(0, -0.72, 0.2, 0.23)


def _fence(on: Sheet) -> Drawing:
    posts = [on.box(x - 0.07, -0.5, x + 0.07, 0.6) for x in (-0.9, -0.45, 0.0, 0.45, 0.9)]
    return union(*posts), union(on.box(-1.05, -0.3, 1.05, -0.18), on.box(-1.05, 0.2, 1.05, 0.32)), on.nothing()


def _lattice(on: Sheet) -> Drawing:
    bars = [on.line([(k, -0.8), (k, 0.8)], 0.02) for k in (-0.53, -0.27, 0.0, 0.27, 0.53)]
    bars += [on.line([(-0.8, k), (0.8, k)], 0.02) for k in (-0.53, -0.27, 0.0, 0.27, 0.53)]
    return on.box(-0.85, -0.85, 0.85, 0.85), on.box(-0.78, -0.78, 0.78, 0.78), union(*bars)


def _wheels(on: Sheet) -> Drawing:
    rims = [on.line(arc(x, 0.35, 0.4, 0, 1, 20), 0.035) for x in (-0.55, 0.55)]
    frame = [(-0.55, 0.35), (-0.2, -0.3), (0.35, -0.3), (0.0, 0.35), (-0.55, 0.35)]
    bars = union(
        on.line(frame, 0.03), on.line([(0.3, -0.5), (0.55, 0.35)], 0.03), on.line([(-0.2, -0.3), (0.0, 0.35)], 0.03)
    )
    return (
        union(*rims),
        bars,
        union(on.line([(-0.32, -0.4), (-0.08, -0.4)], 0.04), on.line([(0.2, -0.55), (0.42, -0.5)], 0.03)),
    )


def _tower(on: Sheet) -> Drawing:
    shaft = on.polygon([(-0.28, 1), (-0.18, -0.5), (0.18, -0.5), (0.28, 1)])
    bands = torch.maximum(shaft, ((on.y * 2.2) % 1.0 - 0.5).abs() / 2.2 - 0.11)
    return (
        shaft,
        bands,
        union(
            on.box(-0.24, -0.6, 0.24, -0.5),
            on.polygon([(-0.2, -0.78), (0, -1), (0.2, -0.78)]),
            on.box(-0.12, -0.8, 0.12, -0.55),
        ),
    )


_DRAWINGS = {
    "boat": _boat, "house": _house, "fir": _fir, "bare tree": _bare_tree, "leafy tree": _leafy_tree, "face": _face,
    "outlined face": _outlined_face, "car": _car, "balloon": _balloon, "flower": _flower, "birds": _birds,
    "person": _person, "fence": _fence, "lattice": _lattice, "wheels": _wheels, "tower": _tower,
}  # fmt: skip
DRAWINGS = tuple(_DRAWINGS)


@cache
def drawing_atlas(device: torch.device) -> Tensor:
    """The layers of every drawing in turn, (drawings * LAYERS, 1, SIZE, SIZE), in units of a drawing's radius."""
    sheet = Sheet()
    return torch.stack([layer for draw in _DRAWINGS.values() for layer in draw(sheet)])[:, None].to(device)


_BOW = [(-0.4, -1), (0.2, -1), (0.45, -0.7), (0.45, -0.3), (0.2, 0), (-0.4, 0)]
_BELLY = [(0.1, 0.8), (0.45, 0.2), (0.45, -0.2), (0.1, -0.8)]
_SNAKE = [(0.45, -0.75), (0.1, -1), (-0.25, -0.95), (-0.45, -0.6), (-0.2, -0.1), (0.25, 0.15), (0.45, 0.6)]
_SNAKE += [(0.2, 0.95), (-0.15, 1), (-0.45, 0.75)]


def _round(start: int, end: int) -> list[Point]:
    """Part of a tall oval, in sixteenths of a turn."""
    return [(0.5 * cos(k * pi / 8), sin(k * pi / 8)) for k in range(start, end + 1)]


# Letters of a page, a unit wide and two high, with strokes of one width.
_LETTERS: dict[str, list[Path]] = {
    "A": [[(-0.5, 1), (0, -1), (0.5, 1)], [(-0.3, 0.3), (0.3, 0.3)]],
    "C": [_round(2, 14)],
    "D": [[(-0.4, -1), (-0.4, 1), *_BELLY, (-0.4, -1)]],
    "E": [[(0.45, -1), (-0.4, -1), (-0.4, 1), (0.45, 1)], [(-0.4, 0), (0.3, 0)]],
    "F": [[(0.45, -1), (-0.4, -1), (-0.4, 1)], [(-0.4, 0), (0.3, 0)]],
    "H": [[(-0.45, -1), (-0.45, 1)], [(0.45, -1), (0.45, 1)], [(-0.45, 0), (0.45, 0)]],
    "I": [[(0, -1), (0, 1)]],
    "K": [[(-0.4, -1), (-0.4, 1)], [(0.45, -1), (-0.4, 0.1), (0.45, 1)]],
    "L": [[(-0.4, -1), (-0.4, 1), (0.45, 1)]],
    "M": [[(-0.5, 1), (-0.5, -1), (0, 0.3), (0.5, -1), (0.5, 1)]],
    "N": [[(-0.45, 1), (-0.45, -1), (0.45, 1), (0.45, -1)]],
    "O": [_round(0, 16)],
    "P": [[(-0.4, 1), *_BOW]],
    "R": [[(-0.4, 1), *_BOW], [(0, 0), (0.45, 1)]],
    "S": [_SNAKE],
    "T": [[(-0.5, -1), (0.5, -1)], [(0, -1), (0, 1)]],
    "U": [[(-0.45, -1), (-0.45, 0.5), (-0.2, 1), (0.2, 1), (0.45, 0.5), (0.45, -1)]],
    "V": [[(-0.5, -1), (0, 1), (0.5, -1)]],
    "X": [[(-0.5, -1), (0.5, 1)], [(0.5, -1), (-0.5, 1)]],
    "Y": [[(-0.5, -1), (0, 0), (0.5, -1)], [(0, 0), (0, 1)]],
    "Z": [[(-0.45, -1), (0.45, -1), (-0.45, 1), (0.45, 1)]],
}
LETTERS = tuple(_LETTERS)
LETTER_STROKE = 0.13


@cache
def letter_strip(device: torch.device) -> Tensor:
    """The letters below one another, (1, 1, letters * SIZE, SIZE), in units of half their height."""
    sheet = Sheet()
    fields = [union(*(sheet.line(path, LETTER_STROKE) for path in paths)) for paths in _LETTERS.values()]
    return torch.cat(fields)[None, None].to(device)

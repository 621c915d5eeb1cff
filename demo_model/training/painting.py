"""What canvases are painted with: points, colours, and a brush that draws one thing for every clip of a batch.

A canvas covers [-2, 2] half-widths and is sampled 1.25 times as finely as the view (`canvas_of`), so that panning,
zooming out and turning never leave it and bilinear lookups stay sharp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .drawings import drawing_atlas
from .glyphs import atlas, coverage
from .vocabulary import COLOURS

PIXELS = 128
REACH = 2.0
FINER = 1.25


def canvas_of(pixels: int) -> int:
    """Edge of the canvases for views of this edge, in pixels."""
    return round(pixels * REACH * FINER)


def pixel_of(edge: int) -> float:
    """The width of a pixel of the view in half-widths, for canvases of this edge."""
    return 2 * REACH * FINER / edge


def grid(size: int, reach: float, device: torch.device) -> Tensor:
    """Pixel centres (size, size, 2) as (x, y) in [-reach, reach]."""
    line = ((torch.arange(size, device=device) + 0.5) / size * 2 - 1) * reach
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x, y], dim=-1)


def palette(device: torch.device) -> Tensor:
    """The named colours, (colours, 3) in [0, 1]."""
    return torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device)


def blend(base: Tensor, colour: Tensor, amount: Tensor) -> Tensor:
    """Lays colour (B, 3) or (B, 3, H, W) over base (B, 3, H, W) by amount (B, H, W)."""
    colour = colour if colour.ndim == 4 else colour[:, :, None, None]
    return base + (colour - base) * amount[:, None]


def dull_colours(numbers: Tensor) -> Tensor:
    """Muted colours (B, count, 3) from uniform numbers (B, 4 * count): named things stand out against them."""
    values = numbers.unflatten(1, (-1, 4))
    grey = 0.18 + 0.67 * values[..., :1]
    return (grey + 0.42 * (values[..., 1:] - 0.5)).clamp(0.04, 0.96)


def draw_thing(
    base: Tensor, fields: Tensor, thing: Tensor, colour: Tensor, place: Tensor, turn: Tensor, shown: Tensor
) -> Tensor:
    """Draws one thing a clip; place is (B, 3): x, y, radius. Shading makes its inside worth tracking."""
    points = grid(base.shape[-1], REACH, base.device)
    offset = (points[None] - place[:, None, None, :2]) / place[:, None, None, 2:]
    cos, sin = torch.cos(turn)[:, None, None], torch.sin(turn)[:, None, None]
    local = torch.stack(
        [cos * offset[..., 0] + sin * offset[..., 1], cos * offset[..., 1] - sin * offset[..., 0]], dim=-1
    )
    amount = coverage(fields, thing, local, place[:, 2] / pixel_of(base.shape[-1])) * shown[:, None, None]
    shade = (1.0 - 0.22 * (local[..., 0] + local[..., 1]).clamp(-1, 1))[:, None]
    painted = (colour[:, :, None, None] * shade).clamp(0, 1)
    if base.shape[1] == 3:
        return blend(base, painted, amount)
    return blend(base, torch.cat([painted, torch.ones_like(painted[:, :1])], dim=1), amount)


@dataclass(frozen=True)
class Brush:
    """Fields of things and drawings, the canvases' edge, and the function that draws, compiled where that pays."""

    fields: Tensor
    drawings: Tensor
    edge: int
    paint: Callable[..., Tensor] = draw_thing

    @classmethod
    def on(cls, device: torch.device, pixels: int = PIXELS, compiled: bool = False) -> Brush:
        """A brush on a device for canvases of views of this edge."""
        paint = torch.compile(draw_thing, dynamic=False) if compiled else draw_thing
        return cls(atlas(device), drawing_atlas(device), canvas_of(pixels), paint)

"""Canvases larger than the view (see `painting`): a background for every clip and a layer in front of it."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .hashing import Numbers, below
from .painting import REACH, Brush, blend, dull_colours, grid, palette, pixel_of
from .scenes import SCENE_STREAMS, furnished, scene_base
from .vocabulary import THINGS

SCATTER = 9
STYLES = ("gradient", "glow", "noise", "stripes", "checks", "landscape")
LANDSCAPE = STYLES.index("landscape")
FIRST_SCENE = len(STYLES)
"""The styles from here on are those of `scenes`."""

# Which streams of random numbers a picture takes. Noises: lattice points along an edge, one stream an
# octave from the first on; ridges: the same along a line; strewn: one stream a thing, six numbers each.
NOISES = {30: (7, 13, 25), 40: (9, 17), 61: (6, 11, 21), 66: (9, 17, 33), 91: (11, 21, 37)}
RIDGES, RIDGE_OCTAVES = (70, 74, 78, 95), ((6, 1.0), (13, 0.4), (29, 0.12))
STREWN_FAR, STREWN_NEAR = 100, 120
STREAMS = {
    20: 8, 24: 8, 50: 1, 60: 24, 90: 8,
    **{first + k: cells**2 for first, octaves in NOISES.items() for k, cells in enumerate(octaves)},
    **{first + k: count for first in RIDGES for k, (count, _) in enumerate(RIDGE_OCTAVES)},
    **{first + k: 6 for first in (STREWN_FAR, STREWN_NEAR) for k in range(SCATTER)}, **SCENE_STREAMS,
}  # fmt: skip


@dataclass(frozen=True)
class Named:
    """The thing that a caption names, one for each clip: which, its colour, where (B, 2) and how large."""

    thing: Tensor
    colour: Tensor
    centre: Tensor
    radius: Tensor
    shown: Tensor


def noise(numbers: Numbers, first: int, roughness: float, edge: int) -> Tensor:
    """Smooth noise over the canvas, about [-1, 1], from the streams `first` on: (B, edge, edge)."""
    total, weight = torch.zeros((), device=numbers.table.device), 1.0
    for octave, count in enumerate(NOISES[first]):
        lattice = numbers[first + octave].view(-1, 1, count, count) * 2 - 1
        total = total + weight * F.interpolate(lattice, size=(edge, edge), mode="bicubic", align_corners=True)
        weight *= roughness
    return total[:, 0]


def ridge(numbers: Numbers, first: int, level: float, height: float, edge: int) -> Tensor:
    """A line of hills as coverage below it, (B, edge, edge); level and height in half-widths."""
    line = torch.zeros((), device=numbers.table.device)
    for octave, (count, weight) in enumerate(RIDGE_OCTAVES):
        lattice = numbers[first + octave].view(-1, 1, count) * 2 - 1
        line = line + weight * F.interpolate(lattice, size=edge, mode="linear", align_corners=True)
    width = edge // 92 * 2 + 1
    smooth = F.avg_pool1d(line, width, stride=1, padding=width // 2, count_include_pad=False)
    top = level - height * smooth
    y = grid(edge, REACH, line.device)[..., 1]
    return torch.sigmoid((y - top.view(-1, 1, edge)) / pixel_of(edge) * 2)


def _wave(phase: Tensor, softness: float) -> Tensor:
    return torch.sigmoid(torch.sin(phase) * softness)


def _patterns(numbers: Numbers, points: Tensor) -> Tensor:
    """Scalar fields in [0, 1] for every style but the landscape: (B, styles - 1, edge, edge)."""
    u = numbers[20][:, :, None, None]
    x, y = points[None, ..., 0], points[None, ..., 1]
    angle = u[:, 0] * 2 * torch.pi
    along, across = x * torch.cos(angle) + y * torch.sin(angle), y * torch.cos(angle) - x * torch.sin(angle)
    frequency = torch.pi * (1.2 + 1.8 * u[:, 1])
    glow = torch.exp(-((x - 2 * u[:, 2] + 1) ** 2 + (y - 2 * u[:, 3] + 1) ** 2) / (0.3 + u[:, 4]))
    checks = _wave(along * frequency, 5) + _wave(across * frequency, 5)
    return torch.stack(
        [
            along / 4 + 0.5,
            glow,
            noise(numbers, 30, 0.5, len(points)) / 2 + 0.5,
            _wave(along * frequency, 4),
            checks - 2 * (checks - 1).clamp_min(0) * 0.9,
        ],
        dim=1,
    )


def _landscape(numbers: Numbers, points: Tensor) -> Tensor:
    """A made-up view: sky, clouds, sun, two far ranges and a lit plain, (B, 3, edge, edge)."""
    u, edge = numbers[60], len(points)
    y = points[..., 1]
    zenith = torch.stack([0.15 + 0.25 * u[:, 0], 0.3 + 0.25 * u[:, 1], 0.55 + 0.35 * u[:, 2]], dim=1)
    horizon = torch.stack([0.75 + 0.2 * u[:, 3], 0.6 + 0.25 * u[:, 4], 0.5 + 0.35 * u[:, 5]], dim=1)
    down = ((y + 2) / 2.2).clamp(0, 1).expand(len(u), -1, -1)
    sky = blend(zenith[:, :, None, None].expand(-1, -1, edge, edge), horizon, down)
    clouds = (noise(numbers, 61, 0.55, edge) - 0.25).clamp(0, 1) * 0.8
    sky = blend(sky, torch.ones_like(zenith), clouds)
    where = torch.stack([u[:, 6] * 2 - 1, u[:, 7] * 0.8 - 0.95], dim=1)
    distance = (points[None] - where[:, None, None]).norm(dim=-1)
    sun = torch.sigmoid((0.12 + 0.08 * u[:, 8, None, None] - distance) / pixel_of(edge) * 1.5)
    sky = blend(sky, zenith.new_tensor([1.0, 0.95, 0.75]).expand_as(zenith), sun)
    light = 0.8 + 0.35 * noise(numbers, 66, 0.6, edge)[:, None]
    far = (horizon * 0.55 + zenith * 0.3)[:, :, None, None] * (0.9 + 0.1 * light)
    ground = torch.stack([0.2 + 0.35 * u[:, 9], 0.32 + 0.3 * u[:, 10], 0.12 + 0.2 * u[:, 11]], dim=1)
    scene = blend(sky, far, ridge(numbers, 70, 0.12, 0.28, edge))
    scene = blend(scene, far * 0.45 + ground[:, :, None, None] * light * 0.5, ridge(numbers, 74, 0.32, 0.2, edge))
    return blend(scene, ground[:, :, None, None] * light, ridge(numbers, 78, 0.62, 0.16, edge))


def _scatter(
    base: Tensor, brush: Brush, numbers: Numbers, first: int, count: Tensor, avoid: Tensor, size: float
) -> Tensor:
    """Strews up to SCATTER things over a canvas, none of the colour to avoid (-1: any)."""
    colours = palette(base.device)
    u = torch.stack([numbers[first + k] for k in range(SCATTER)])
    other = (avoid + 1 + below(u[..., 0], len(colours) - 1)) % len(colours)
    thing, colour = below(u[..., 1], len(THINGS)), colours[other]
    place = torch.stack([u[..., 2] * 3.6 - 1.8, u[..., 3] * 3.6 - 1.8, size * (0.6 + 0.8 * u[..., 4])], dim=-1)
    turn = (u[..., 5] - 0.5) * 2
    shown = (count > torch.arange(SCATTER, device=base.device)[:, None]).float()
    for k in range(SCATTER):
        base = brush.paint(base, brush.fields, thing[k], colour[k], place[k], turn[k], shown[k])
    return base


def background(brush: Brush, numbers: Numbers, style: Tensor, avoid: Tensor) -> Tensor:
    """The far layer, (B, 3, edge, edge) in [0, 1]; named colours to avoid (B,), -1 for none."""
    points = grid(brush.edge, REACH, style.device)
    patterns = _patterns(numbers, points)
    chosen = patterns.gather(1, style.clamp(max=LANDSCAPE - 1).view(-1, 1, 1, 1).expand(-1, 1, *points.shape[:2]))[:, 0]
    ends = dull_colours(numbers[24])
    base = blend(ends[:, 0, :, None, None].expand(-1, -1, *points.shape[:2]), ends[:, 1], chosen)
    base = base * (1 + 0.22 * noise(numbers, 40, 0.6, brush.edge)[:, None])
    quiet = avoid >= 0
    many = numbers[50][:, 0]
    count = torch.where(quiet, below(many, 5) - 1, 4 + below(many, 6))
    base = _scatter(base, brush, numbers, STREWN_FAR, count, avoid, 0.26)
    wild = (style == LANDSCAPE).view(-1, 1, 1, 1)
    base = torch.where(wild, _landscape(numbers, points), base).clamp(0, 1)
    kind = torch.where(style >= FIRST_SCENE, style - FIRST_SCENE, -1)
    if not (kind >= 0).any():
        return base
    scenes = furnished(scene_base(numbers, kind, brush.edge), brush, numbers, kind, quiet)
    return torch.where((kind >= 0).view(-1, 1, 1, 1), scenes, base)


def foreground(brush: Brush, numbers: Numbers, style: Tensor, layered: Tensor, named: Named) -> Tensor:
    """The near layer with its coverage, colour already multiplied by it: (B, 4, edge, edge).

    A named thing, or, where `layered`, near hills (landscape) or large things to pass by.
    """
    empty = torch.zeros(len(style), 4, brush.edge, brush.edge, device=style.device)
    u = numbers[90]
    soil = torch.stack([0.1 + 0.25 * u[:, 0], 0.14 + 0.25 * u[:, 1], 0.06 + 0.14 * u[:, 2]], dim=1)
    light = 0.85 + 0.4 * noise(numbers, 91, 0.6, brush.edge)[:, None]
    hill = torch.cat([soil[:, :, None, None] * light, torch.ones_like(light)], dim=1).clamp(0, 1)
    wild = style == LANDSCAPE
    near = blend(empty, hill, ridge(numbers, 95, 0.85, 0.3, brush.edge) * (wild & layered)[:, None, None])
    count = torch.where(layered, torch.where(wild, 2, 5), 0)
    near = _scatter(near, brush, numbers, STREWN_NEAR, count, torch.full_like(count, -1), 0.34)
    place = torch.cat([named.centre, named.radius[:, None]], dim=1)
    turn = (u[:, 3] - 0.5) * 0.8
    return brush.paint(
        near, brush.fields, named.thing, palette(style.device)[named.colour], place, turn, named.shown.float()
    )

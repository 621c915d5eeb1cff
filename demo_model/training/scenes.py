"""Pictures with detail down to the pixel: lakes with boats, woods, pages of letters, terrain, stones, and drawings.

They stand beside the plain styles of `pictures`, which teach motion: these teach what is small and has to stay. Each
function fills the canvases of a batch, (B, 3, edge, edge) in [0, 1], from streams of random numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import cos, pi, sin

import torch
import torch.nn.functional as F
from torch import Tensor

from .drawings import DRAWINGS, LAYERS, LETTERS, letter_strip
from .glyphs import SPAN
from .hashing import Numbers, below
from .painting import REACH, Brush, blend, dull_colours, grid, palette, pixel_of

SCENES = ("water", "wood", "page", "terrain", "stones", "toys")
WATER, WOOD, PAGE, TERRAIN, STONES, TOYS = range(len(SCENES))
STONE_COUNT, FURNITURE, PAGE_LETTERS = 60, 9, 97
BASE, COLOURS, STONE, LETTER, FURNISH = 200, 201, 202, 203, 210
SCENE_STREAMS = {
    BASE: 24, COLOURS: 24, STONE: 6 * STONE_COUNT, LETTER: PAGE_LETTERS,
    **{FURNISH + k: 8 + 4 * LAYERS for k in range(FURNITURE)},
}  # fmt: skip
CELL_WIDTH, CELL_HEIGHT, SPACES = 1.45, 3.2, 0.18
"""Of a page's letter, in halves of its height, and the share of cells without one."""
TILE, CELLS = 256, 64
"""Edge of the noise's tile in pixels, and how many bumps lie along it."""
_TURN = 0.65
_WITH_TREES = tuple(DRAWINGS.index(name) for name in ("fir", "bare tree", "leafy tree", "bare tree", "house", "fence"))
_ON_WATER = tuple(DRAWINGS.index(name) for name in ("boat", "boat", "boat", "birds", "tower", "balloon"))


@cache
def tile(device: torch.device) -> Tensor:
    """Smooth periodic noise of unit variance, (1, 1, TILE + 1, TILE + 1), the last row and column the first again."""
    noise = torch.randn(TILE, TILE, generator=torch.Generator().manual_seed(7))
    frequency = torch.fft.fftfreq(TILE)
    square = frequency[:, None] ** 2 + frequency**2
    keep = torch.exp(-square * (2.2 * TILE / CELLS) ** 2) * (square > 0)
    smooth = torch.fft.ifft2(torch.fft.fft2(noise) * keep).real
    smooth = smooth / smooth.std()
    return F.pad(smooth[None, None], (0, 1, 0, 1), mode="circular").to(device)


def fractal(points: Tensor, u: Tensor, cells: float, octaves: int, roughness: float = 0.5) -> Tensor:
    """Noise of several octaves at points (B, H, W, 2) or (H, W, 2), about [-1, 1]: (B, H, W).

    u (B, 3) are random numbers; the lowest octave has `cells` bumps a half-width, each next one twice as many.
    """
    turn = 2 * pi * u[:, 0]
    total, weight, whole = torch.zeros((), device=u.device), 1.0, 0.0
    for octave in range(octaves):
        c, s = torch.cos(turn + _TURN * octave)[:, None, None], torch.sin(turn + _TURN * octave)[:, None, None]
        scale = cells * 2**octave / CELLS
        x = (c * points[..., 0] - s * points[..., 1]) * scale + (u[:, 1] + 0.37 * octave)[:, None, None]
        y = (s * points[..., 0] + c * points[..., 1]) * scale + (u[:, 2] + 0.71 * octave)[:, None, None]
        where = torch.remainder(torch.stack([x, y], -1), 1.0) * 2 - 1
        noise = tile(u.device).expand(len(u), -1, -1, -1)
        total = total + weight * F.grid_sample(noise, where, align_corners=True)[:, 0]
        whole, weight = whole + weight**2, weight * roughness
    return total / (2 * whole**0.5)


def skyline(u: Tensor, cells: float, octaves: int, points: Tensor) -> Tensor:
    """A rough line over the canvas, about [-1, 1]: (B, 1, edge)."""
    line = torch.stack([points[:1, :, 0], torch.zeros_like(points[:1, :, 0])], -1)
    flat = torch.cat([torch.zeros_like(u[:, :1]), u[:, 1:]], 1)
    return fractal(line, flat, cells, octaves, 0.55)


def below_line(points: Tensor, line: Tensor) -> Tensor:
    """Coverage of what lies below a line (B, 1, edge): (B, edge, edge)."""
    return torch.sigmoid((points[..., 1] - line) / pixel_of(len(points)) * 3)


def _three(numbers: Tensor) -> Tensor:
    """Colours of a sky's top, middle and foot (B, 3, 3), from blue days to red evenings: (B, 9) uniform numbers."""
    hue = numbers.unflatten(1, (3, 3))
    low = hue.new_tensor([[0.06, 0.1, 0.28], [0.35, 0.25, 0.35], [0.6, 0.42, 0.3]])
    span = hue.new_tensor([[0.4, 0.4, 0.55], [0.5, 0.45, 0.55], [0.4, 0.5, 0.65]])
    return low + span * hue


def _sky(u: Tensor, colours: Tensor, points: Tensor, horizon: Tensor) -> Tensor:
    """A sky that brightens towards the horizon (B, 1, 1), with streaks of cloud and a sun."""
    y = points[..., 1]
    down = ((y + REACH) / (horizon + REACH)).clamp(0, 1) ** 1.5
    sky = blend(colours[:, 0, :, None, None].expand(-1, -1, *points.shape[:2]), colours[:, 1], (down * 2).clamp(max=1))
    sky = blend(sky, colours[:, 2], (down * 2 - 1).clamp(min=0))
    streaks = fractal(points * points.new_tensor([0.35, 2.0]), u[:, :3] * u.new_tensor([0, 1, 1]), 1.2, 5)
    sky = blend(sky, (colours[:, 2] + 0.25).clamp(max=1), (streaks * 2.2 - 0.3).clamp(0, 0.85))
    where = torch.stack([u[:, 3] * 2 - 1, horizon[:, 0, 0] - 0.25 - 0.7 * u[:, 4]], 1)
    distance = (points[None] - where[:, None, None]).norm(dim=-1)
    radius = (0.07 + 0.12 * u[:, 5])[:, None, None]
    sun = colours.new_tensor([1.0, 0.95, 0.8]).expand(len(u), 3)
    sky = blend(sky, sun, 0.5 * torch.exp(-((distance / (radius * 3)) ** 2)))
    return blend(sky, sun, torch.sigmoid((radius - distance) / pixel_of(len(points)) * 2))


def _hills(base: Tensor, u: Tensor, colours: Tensor, points: Tensor, horizon: Tensor) -> Tensor:
    """Three ranges in front of one another, each darker, the last with a jagged line of firs."""
    for k in range(3):
        height = (0.42 - 0.14 * k) * (0.5 + u[:, 6 + k, None, None])
        line = horizon - height * (0.4 + 0.6 * skyline(u[:, 9 + k : 12 + k], 0.8 + 0.7 * k, 6, points))
        if k == 2:
            firs = skyline(u[:, 10:13], 26, 2, points).abs() * 0.11 * (skyline(u[:, 11:14], 1.1, 2, points) > 0)
            line = line - firs
        shade = colours[:, 2] * (0.62 - 0.26 * k) + colours[:, 0] * 0.3
        base = blend(base, shade.clamp(0, 1), below_line(points, line))
    return base


def water(numbers: Numbers, points: Tensor) -> Tensor:
    """A lake under a sky, with what is above it mirrored between ripples."""
    u, colours = numbers[BASE], _three(numbers[COLOURS][:, :9])
    horizon = (0.35 * u[:, 14] - 0.05)[:, None, None]
    above = _hills(_sky(u, colours, points, horizon), u, colours, points, horizon)
    depth = (points[..., 1] - horizon).clamp_min(0)
    waves = fractal(points * points.new_tensor([0.5, 4.0]), u[:, 15:18] * u.new_tensor([0, 1, 1]), 3.0, 5, 0.6)
    ripple = waves * (0.02 + 0.05 * depth)
    mirrored = torch.stack([points[..., 0] + ripple, 2 * horizon - points[..., 1] + ripple * 2], -1)
    seen = F.grid_sample(above, mirrored / REACH, padding_mode="reflection", align_corners=False)
    deep = colours[:, 0, :, None, None] * 0.6 + 0.05
    seen = seen * 0.72 + deep * 0.28 + (waves * 0.07 * (0.4 + depth))[:, None]
    return blend(above, seen, below_line(points, horizon))


def wood(numbers: Numbers, points: Tensor) -> Tensor:
    """Ground and sky for trees to stand on."""
    u, colours = numbers[BASE], _three(numbers[COLOURS][:, :9])
    horizon = (0.3 * u[:, 14] - 0.2)[:, None, None]
    base = _hills(_sky(u, colours, points, horizon), u, colours, points, horizon)
    grass = fractal(points, u[:, 15:18], 5.0, 5, 0.75)[:, None]
    dirt = fractal(points, u[:, 18:21], 1.0, 3)[:, None]
    ground = numbers[COLOURS][:, 9:12, None, None] * 0.35 + u.new_tensor([0.12, 0.16, 0.05])[:, None, None]
    ground = ground * (1 + 0.5 * grass) + 0.1 * dirt
    return blend(base, ground, below_line(points, horizon))


@dataclass(frozen=True)
class PageLayout:
    """Where the letters of pages stand: the tilt of their lines and half a letter's height, (B, 1, 1), half-widths."""

    angle: Tensor
    half: Tensor

    @classmethod
    def of(cls, numbers: Numbers) -> PageLayout:
        """The smallest letters are 9 pixels high in a view of 256, the largest 29."""
        u = numbers[BASE][:, :, None, None]
        return cls((u[:, 1] - 0.5) * 0.5, 0.035 + 0.08 * u[:, 2] ** 2)

    def cells(self, points: Tensor) -> Tensor:
        """Column and row, with fractions, of points (B, H, W, 2) or (H, W, 2): (B, H, W, 2)."""
        cos_, sin_ = torch.cos(self.angle), torch.sin(self.angle)
        x = cos_ * points[..., 0] + sin_ * points[..., 1]
        y = cos_ * points[..., 1] - sin_ * points[..., 0]
        return torch.stack([x / (self.half * CELL_WIDTH), y / (self.half * CELL_HEIGHT)], -1)

    def points(self, cells: Tensor) -> Tensor:
        """The points of columns and rows, with fractions: (B, H, W, 2)."""
        x, y = cells[..., 0] * self.half * CELL_WIDTH, cells[..., 1] * self.half * CELL_HEIGHT
        cos_, sin_ = torch.cos(self.angle), torch.sin(self.angle)
        return torch.stack([cos_ * x - sin_ * y, sin_ * x + cos_ * y], -1)


def letters_at(numbers: Numbers, cells: Tensor) -> tuple[Tensor, Tensor]:
    """Which letter is in the cells (B, H, W, 2), and whether one is: two (B, H, W)."""
    whole = cells.floor().long()
    place = (whole[..., 0] * 31 + whole[..., 1] * 57) % PAGE_LETTERS
    number = numbers[LETTER].gather(1, place.flatten(1)).view_as(place)
    return below(number, len(LETTERS)), number * 7 % 1 > SPACES


def has_light_letters(numbers: Numbers) -> Tensor:
    """Whether a page is dark, (B,)."""
    return numbers[BASE][:, 3] < 0.3


def letter_fields(letters: Tensor, cells: Tensor) -> Tensor:
    """Distance from a cell's letter at points of it given in cells, in halves of a letter's height: (B, H, W)."""
    local = cells - cells.floor() - 0.5
    x, y = local[..., 0] * CELL_WIDTH, (local[..., 1] * CELL_HEIGHT).clamp(-SPAN, SPAN)
    strip_y = (letters + (y / SPAN + 1) / 2) / len(LETTERS) * 2 - 1
    where = torch.stack([x / SPAN, strip_y], -1).flatten(0, 1)[None]
    return F.grid_sample(letter_strip(cells.device), where, align_corners=False)[0, 0].view_as(x)


def page(numbers: Numbers, points: Tensor) -> Tensor:
    """Lines of small letters on paper, at a slight angle."""
    u, layout = numbers[BASE], PageLayout.of(numbers)
    cells = layout.cells(points)
    letters, is_there = letters_at(numbers, cells)
    ink = torch.sigmoid(-2.5 * letter_fields(letters, cells) * layout.half / pixel_of(len(points))) * is_there
    colours, is_dark = numbers[COLOURS], has_light_letters(numbers)[:, None]
    light, dark = 0.75 + 0.25 * colours[:, :3], 0.3 * colours[:, 3:6]
    paper, pen = torch.where(is_dark, dark, light), torch.where(is_dark, light, dark)
    shade = 1 + 0.12 * fractal(points, u[:, 4:7], 0.7, 2)[:, None]
    return blend(paper[:, :, None, None] * shade, pen, ink)


def terrain(numbers: Numbers, points: Tensor) -> Tensor:
    """Rough land under a low light, coloured by height."""
    u = numbers[BASE]
    cells, step = 0.9, pixel_of(len(points))
    height = fractal(points, u[:, :3], cells, 7, 0.52)
    toward = points + points.new_tensor([cos(0.7), sin(0.7)]) * step
    light = (fractal(toward, u[:, :3], cells, 7, 0.52) - height) / step
    colours = numbers[COLOURS][:, :9].unflatten(1, (3, 3)) * 0.75 + 0.15
    amount = torch.sigmoid(height * 6 + 2 * u[:, 3, None, None] - 1)
    base = blend(colours[:, 0, :, None, None].expand(-1, -1, *points.shape[:2]), colours[:, 1], amount)
    base = blend(base, colours[:, 2], torch.sigmoid((height - 0.35) * 25))
    return base * (0.85 + 0.16 * light.clamp(-3, 3))[:, None]


def stones(numbers: Numbers, points: Tensor) -> Tensor:
    """A floor of stones, each of one colour, with dark joints between."""
    each = numbers[STONE].unflatten(1, (STONE_COUNT, 6))
    u = numbers[BASE]
    wobble = fractal(points, u[:, :3], 2.5, 3) * 0.07
    nearest = torch.full((len(u), *points.shape[:2]), 99.0, device=u.device)
    second, owner = nearest.clone(), torch.zeros_like(nearest, dtype=torch.long)
    for k in range(STONE_COUNT):
        offset = points[None] - (each[:, k, None, None, :2] * 2 - 1) * REACH
        distance = offset.norm(dim=-1) + wobble
        second = torch.minimum(second, torch.maximum(distance, nearest))
        owner = torch.where(distance < nearest, k, owner)
        nearest = torch.minimum(nearest, distance)
    tint = dull_colours(each[..., 2:].flatten(1))
    colour = tint.gather(1, owner.flatten(1)[..., None].expand(-1, -1, 3)).view(*owner.shape, 3).movedim(-1, 1)
    grain = fractal(points, u[:, 3:6], 9.0, 4, 0.7)[:, None]
    joint = torch.sigmoid((second - nearest - 0.02) / pixel_of(len(points)) * 1.2)
    return blend(colour * 0.25, colour * (1 + 0.25 * grain), joint)


def toys(numbers: Numbers, points: Tensor) -> Tensor:
    """A quiet ground for drawings."""
    u = numbers[BASE]
    ends = dull_colours(numbers[COLOURS][:, :8])
    amount = torch.sigmoid(fractal(points, u[:, :3], 0.8, 4, 0.6) * 3)
    return blend(ends[:, 0, :, None, None].expand(-1, -1, *points.shape[:2]), ends[:, 1], amount)


_PAINTERS: tuple[Callable[[Numbers, Tensor], Tensor], ...] = (water, wood, page, terrain, stones, toys)


def scene_base(numbers: Numbers, kind: Tensor, edge: int) -> Tensor:
    """The grounds of the scenes `kind` (B,), black where it is -1: (B, 3, edge, edge)."""
    points = grid(edge, REACH, kind.device)
    base = torch.zeros(len(kind), 3, edge, edge, device=kind.device)
    for number, painter in enumerate(_PAINTERS):
        rows = (kind == number).nonzero()[:, 0]
        if len(rows):
            base[rows] = painter(numbers.rows(rows), points).clamp(0, 1)
    return base


def furnished(base: Tensor, brush: Brush, numbers: Numbers, kind: Tensor, is_quiet: Tensor) -> Tensor:
    """Draws up to FURNITURE drawings over scenes, far ones first; quiet ones (B,) in muted colours alone."""
    device, fewest = base.device, torch.tensor([2, 6, 0, 0, 0, 6], device=base.device)
    most = torch.tensor([5, 9, 1, 2, 1, 9], device=device)
    row = kind.clamp_min(0)
    wanted = fewest[row] + below(numbers[BASE][:, 21], 8) % (most - fewest + 1)[row]
    wanted = torch.where(kind < 0, 0, wanted)
    trees, boats = (torch.tensor(rows, device=device) for rows in (_WITH_TREES, _ON_WATER))
    horizon = 0.35 * numbers[BASE][:, 14]
    for k in range(FURNITURE):
        u = numbers[FURNISH + k]
        any_, of_six = below(u[:, 0], len(DRAWINGS)), below(u[:, 0], 6)
        which = torch.where(kind == WOOD, trees[of_six], torch.where(kind == WATER, boats[of_six], any_))
        size = 0.06 + 0.3 * u[:, 1] ** 2 + torch.where(kind == TOYS, 0.1 * u[:, 2], 0.0)
        size = torch.where(kind == WOOD, 0.12 + 0.06 * k + 0.1 * u[:, 1], size)
        stands = horizon - 0.1 + 0.1 * k + 0.1 * u[:, 4] - torch.where(kind == WOOD, size, 0.8 * size - 0.12)
        y = torch.where((kind == WOOD) | (kind == WATER), stands, u[:, 4] * 2.8 - 1.4)
        place = torch.stack([u[:, 3] * 3 - 1.5, y, size], -1)
        turn = torch.where(kind == TOYS, (u[:, 5] - 0.5) * 0.9, 0.0)
        colours = dull_colours(u[:, 8:])
        strong = palette(device)[below(u[:, 6], len(palette(device)))]
        lead = torch.where((is_quiet | (kind == WOOD))[:, None], colours[:, 1], strong)
        shades = (colours[:, 0], lead, colours[:, 2] * 0.3)
        shown = (wanted > k).float()
        for layer in range(LAYERS):
            base = brush.paint(base, brush.drawings, which * LAYERS + layer, shades[layer], place, turn, shown)
    return base

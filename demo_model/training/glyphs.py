"""Signed distance fields of the named things, made from formulas and five-by-seven bitmaps.

One small image for each thing; drawing any of them is then one lookup in that image, for every clip of
a batch at once.
"""

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .vocabulary import LETTERS, SHAPES

SIZE = 64
SPAN = 1.5  # the images cover [-SPAN, SPAN]; the things themselves about [-1, 1]

_ROWS = {
    "A": (14, 17, 17, 31, 17, 17, 17), "E": (31, 16, 16, 30, 16, 16, 31), "F": (31, 16, 16, 30, 16, 16, 16),
    "H": (17, 17, 17, 31, 17, 17, 17), "K": (17, 18, 20, 24, 20, 18, 17), "L": (16, 16, 16, 16, 16, 16, 31),
    "N": (17, 25, 25, 21, 19, 19, 17), "T": (31, 4, 4, 4, 4, 4, 4), "U": (17, 17, 17, 17, 17, 17, 14),
    "X": (17, 17, 10, 4, 10, 17, 17), "Y": (17, 17, 10, 4, 4, 4, 4), "Z": (31, 1, 2, 4, 8, 16, 31),
}  # fmt: skip


def _polygon(x: Tensor, y: Tensor, sides: int, radius: float) -> Tensor:
    """Largest of the distances to a regular polygon's edges, one corner up."""
    normals = [torch.tensor(torch.pi * (2 * k + 1) / sides - torch.pi / 2) for k in range(sides)]
    reach = radius * torch.cos(torch.tensor(torch.pi / sides))
    return torch.stack([x * torch.cos(a) + y * torch.sin(a) for a in normals]).amax(0) - reach


def _star(x: Tensor, y: Tensor) -> Tensor:
    angle, radius = torch.atan2(x, -y), torch.hypot(x, y)
    fold = (angle + torch.pi / 5) % (2 * torch.pi / 5) - torch.pi / 5
    inner, outer = 0.45, 1.05
    px, py = radius * torch.cos(fold), (radius * torch.sin(fold)).abs()
    tip, notch = torch.tensor([outer, 0.0]), inner * torch.tensor([0.8090, 0.5878])
    edge = notch - tip
    normal = torch.stack([edge[1], -edge[0]]) / edge.norm()
    return (px - tip[0]) * normal[0] + py * normal[1]


def _heart(x: Tensor, y: Tensor) -> Tensor:
    x, up = x.abs() * 1.1, -y * 1.1 + 0.1
    return 0.35 * (torch.sqrt(x**2 + (up - 0.62 * torch.sqrt(x + 1e-3)) ** 2) - 0.95) * 2


def _letter(rows: tuple[int, ...]) -> Tensor:
    bits = torch.tensor([[(row >> (4 - column)) & 1 for column in range(5)] for row in rows], dtype=torch.float32)
    padded = F.pad(bits, (2, 2, 1, 1))[None, None]
    smooth = F.interpolate(padded, size=(SIZE, SIZE), mode="bicubic", align_corners=False)[0, 0]
    return (0.45 - smooth) * 0.4


@cache
def atlas(device: torch.device) -> Tensor:
    """Distance fields (things, 1, 64, 64), negative inside, in units of a thing's radius."""
    line = ((torch.arange(SIZE) + 0.5) / SIZE * 2 - 1) * SPAN
    y, x = torch.meshgrid(line, line, indexing="ij")
    radius = torch.hypot(x, y)
    bar, arm = 0.34, 1.0
    fields = {
        "circle": radius - 0.95,
        "square": torch.maximum(x.abs(), y.abs()) - 0.85,
        "triangle": _polygon(x, y + 0.0, 3, 1.15),
        "star": _star(x, y),
        "ring": (radius - 0.70).abs() - 0.27,
        "cross": torch.minimum(
            torch.maximum(x.abs() - bar, y.abs() - arm), torch.maximum(x.abs() - arm, y.abs() - bar)
        ),
        "diamond": (x.abs() * 1.25 + y.abs() - 1.1) / 1.6,
        "heart": _heart(x, y),
    }
    images = [fields[name] for name in SHAPES] + [_letter(_ROWS[letter]) for letter in LETTERS]
    return torch.stack(images)[:, None].to(device)


def coverage(fields: Tensor, thing: Tensor, local: Tensor, sharpness: Tensor) -> Tensor:
    """Share of each point that a thing covers: thing (B,), local (B, H, W, 2), sharpness (B,) -> (B, H, W).

    fields is the `atlas`; local is in radii of the thing; sharpness is its radius in pixels, so that edges
    are a pixel wide.
    """
    field = F.grid_sample(fields[thing], local / SPAN, mode="bilinear", padding_mode="border", align_corners=False)[
        :, 0
    ]
    return torch.sigmoid(-2.5 * field * sharpness[:, None, None])

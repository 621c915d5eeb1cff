"""Triplets of pictures with the exact motion between them: what an interpolation network learns from.

A clip is a function of its frame's index, whole or not, so the picture at any time between two frames is known
exactly, and so is where each of its pixels lies in both.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import log
from typing import NamedTuple

import torch
from torch import Tensor

from .clips import FRAMES, Clips, canvases, draw, look, poses, training_seeds
from .motion import content_origin
from .painting import Brush, grid

FIRST_SEED = 2**37  # apart from the other stages'
SMALLEST_GAP, LARGEST_GAP = 0.5, FRAMES - 1.0
SMALLEST_VIEW, LARGEST_VIEW = 0.75, 1.5  # half-widths of a clip's own view that a training picture shows
SHIFT = 0.3  # how far a training picture's middle lies from the clip's, at most
MIDDLE_SHARE = 0.5  # share of the triplets whose time is the very middle
PLAIN_SHARE = 0.5  # share of the triplets with the clips' own colours
SURE = 0.1  # coverage nearer to 0 or 1 than this says which layer a pixel belongs to


class Triplets(NamedTuple):
    """Pictures (B, 3, H, W) in [0, 1], the time (B, 1, 1, 1) of the one between, and its motion.

    flow (B, 4, H, W) is in pixels, x before y, from the picture between to the first and to the second; sure
    (B, 1, H, W) is 1 where a pixel belongs to one layer alone.
    """

    first: Tensor
    second: Tensor
    between: Tensor
    time: Tensor
    flow: Tensor
    sure: Tensor


@dataclass(frozen=True)
class View:
    """How each of B pictures looks at its clip: size in half-widths (B,), middle (B, 2), turn (B, 2, 2)."""

    reach: Tensor
    middle: Tensor
    turn: Tensor

    def points(self, pixels: int) -> Tensor:
        """Positions in the clip of the picture's pixels, (B, 1, pixels, pixels, 2)."""
        plain = grid(pixels, 1.0, self.reach.device)
        turned = torch.einsum("hwj,bij->bhwi", plain, self.turn)
        return (turned * self.reach[:, None, None, None] + self.middle[:, None, None])[:, None]

    def pixels_of(self, move: Tensor, pixels: int) -> Tensor:
        """A shift in the clip (B, F, H, W, 2) as one in the picture's pixels."""
        scale = (pixels / 2 / self.reach).view(-1, 1, 1, 1, 1)
        return torch.einsum("bfhwi,bij->bfhwj", move, self.turn) * scale


def take(clips: Clips, rows: Tensor) -> Clips:
    """Some of the clips."""
    return Clips(**{field.name: getattr(clips, field.name)[rows] for field in fields(Clips)})


class Pool:
    """Canvases of the latest `chunks` chunks of training clips, half precision; which they are follows from the step.

    Drawing canvases takes far longer than looking at them, so each is looked at many times.
    """

    def __init__(self, device: torch.device, chunk: int, chunks: int, every: int, first: int, brush: Brush) -> None:
        self.chunk, self.chunks, self.every, self.first, self.brush = chunk, chunks, every, first, brush
        self.far = torch.zeros(chunk * chunks, 3, brush.edge, brush.edge, dtype=torch.float16, device=device)
        self.near = torch.zeros(chunk * chunks, 4, brush.edge, brush.edge, dtype=torch.float16, device=device)
        self.seeds = torch.full((chunk * chunks,), -1, device=device)
        self.held: dict[int, int] = {}

    def at(self, step: int) -> None:
        """Draws what the pool of this step lacks."""
        start = step // self.every
        for number in range(start, start + self.chunks):
            slot = number % self.chunks
            if self.held.get(slot) == number:
                continue
            seeds = training_seeds(FIRST_SEED + self.first + number * self.chunk, self.chunk, self.seeds.device)
            rows = slice(slot * self.chunk, (slot + 1) * self.chunk)
            far, near = canvases(draw(seeds), self.brush)
            self.far[rows], self.near[rows], self.seeds[rows] = far.half(), near.half(), seeds
            self.held[slot] = number

    def draw(self, count: int, pixels: int, generator: torch.Generator) -> Triplets:
        """Random triplets of the pool's clips."""
        device = self.seeds.device
        rows = torch.randint(len(self.seeds), (count,), generator=generator, device=device)
        clips = draw(self.seeds[rows])
        u = torch.rand(count, 16, generator=generator, device=device)
        made = triplets(clips, self.far[rows].float(), self.near[rows].float(), *moments(u), views(u[:, 4:]), pixels)
        return recoloured(made, u[:, 10:])


def moments(u: Tensor) -> tuple[Tensor, Tensor]:
    """From uniform numbers (B, 4): the indices of both frames (B, 2), either first, and the time between (B,).

    Gaps are even on a logarithmic scale for one half of the triplets, and even for the other, which move more.
    """
    share = (u[:, 0] * 2) % 1
    small = torch.exp(log(SMALLEST_GAP) + share * (log(LARGEST_GAP) - log(SMALLEST_GAP)))
    gap = torch.where(u[:, 0] < 0.5, small, SMALLEST_GAP + share * (LARGEST_GAP - SMALLEST_GAP))
    start = u[:, 1] * (FRAMES - 1 - gap)
    ends = torch.stack([start, start + gap], dim=1)
    backward = u[:, 2:3] < 0.5
    any_time = ((u[:, 3] - MIDDLE_SHARE) / (1 - MIDDLE_SHARE)).clamp(0.02, 0.98)
    return torch.where(backward, ends.flip(1), ends), torch.where(u[:, 3] < MIDDLE_SHARE, 0.5, any_time)


def views(u: Tensor) -> View:
    """From uniform numbers (B, 6): size, middle, and one of the eight ways to turn and mirror a square."""
    reach = SMALLEST_VIEW * (LARGEST_VIEW / SMALLEST_VIEW) ** u[:, 0]
    signs = (u[:, 3:5] < 0.5).float() * 2 - 1
    plain = torch.diag_embed(signs)
    return View(reach, (u[:, 1:3] * 2 - 1) * SHIFT, torch.where(u[:, 5, None, None] < 0.5, plain, plain.flip(1)))


def destination(origin: Tensor, pose: Tensor, centre: Tensor) -> Tensor:
    """Where content of frame 0 is at a pose: origin (B, F, H, W, 2), pose (B, F, 4), centre (B, 2), half-widths."""
    about = centre[:, None, None, None]
    offset = origin - about
    grow = torch.exp(pose[..., 2])[..., None, None]
    cos, sin = torch.cos(pose[..., 3])[..., None, None] * grow, torch.sin(pose[..., 3])[..., None, None] * grow
    x = cos * offset[..., 0] - sin * offset[..., 1]
    y = sin * offset[..., 0] + cos * offset[..., 1]
    return torch.stack([x, y], dim=-1) + about + pose[..., None, None, :2]


def triplets(clips: Clips, far: Tensor, near: Tensor, ends: Tensor, time: Tensor, view: View, pixels: int) -> Triplets:
    """Triplets at both frames' indices (B, 2) and a time between (B,), from the clips' canvases."""
    middle = torch.lerp(ends[:, :1], ends[:, 1:], time[:, None])
    layers = poses(clips, torch.cat([ends, middle], dim=1))
    about = torch.where(clips.names_a_shape[:, None], clips.centre, 0.0)
    centres = torch.zeros_like(about), about
    points = view.points(pixels)
    origins = [content_origin(points, pose, centre) for pose, centre in zip(layers, centres, strict=True)]
    back, front = look(far, origins[0]), look(near, origins[1])
    pictures = (back * (1 - front[:, :, 3:]) + front[:, :, :3]).clamp(0, 1)
    shifts = [
        destination(origin[:, 2:].expand(-1, 2, -1, -1, -1), pose[:, :2], centre) - points
        for origin, pose, centre in zip(origins, layers, centres, strict=True)
    ]
    cover = front[:, 2:, 3]
    shift = view.pixels_of(torch.where(cover[..., None] > 0.5, shifts[1], shifts[0]), pixels)
    flow = shift.permute(0, 1, 4, 2, 3).flatten(1, 2)
    sure = ((cover - 0.5).abs() > 0.5 - SURE).float()
    return Triplets(pictures[:, 0], pictures[:, 1], pictures[:, 2], time.view(-1, 1, 1, 1), flow, sure)


def recoloured(found: Triplets, u: Tensor) -> Triplets:
    """Other colours for a share of the triplets, from uniform numbers (B, 6): channels in turn, inverted, weaker."""
    turns = torch.stack([torch.roll(torch.eye(3, device=u.device), k, 0) for k in range(3)])[(u[:, 1] * 3).long()]
    low, high = u[:, 3] * 0.4, 1 - u[:, 4] * 0.4
    low, high = torch.where(u[:, 2] < 0.5, low, high), torch.where(u[:, 2] < 0.5, high, low)

    def paint(pictures: Tensor) -> Tensor:
        turned = torch.einsum("bchw,bdc->bdhw", pictures, turns)
        changed = low.view(-1, 1, 1, 1) + turned * (high - low).view(-1, 1, 1, 1)
        return torch.where((u[:, 0] < PLAIN_SHARE).view(-1, 1, 1, 1), pictures, changed)

    return Triplets(paint(found.first), paint(found.second), paint(found.between), found.time, found.flow, found.sure)

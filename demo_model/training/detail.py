"""Detail of a clip's frames: the energy of its finest frequencies, and whether small letters can still be read."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .clips import Clips, frame_indices, poses
from .drawings import LETTERS
from .hashing import Numbers
from .measure import destination, grey
from .scenes import SCENE_STREAMS, PageLayout, has_light_letters, letter_fields, letters_at

LETTER_PIXELS = 12
"""Height of the letters that are read, in a view of 256 pixels."""
COLUMNS, ROWS = 11, 5
"""How many cells about the page's middle are read."""
WIDE, HIGH = 14, 24
"""Samples across a letter, and down."""
MARGIN = 0.06


def octave_energies(frames: Tensor, octaves: int) -> Tensor:
    """Mean squares of the highest octaves of frequencies of frames (..., 3, H, W), the finest first: (..., octaves)."""
    rest, energies = frames.flatten(0, -4), []
    for _ in range(octaves):
        coarse = F.avg_pool2d(rest, 2)
        smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        energies.append((rest - smooth).square().mean((1, 2, 3)))
        rest = coarse
    return torch.stack(energies, -1).view(*frames.shape[:-3], octaves)


def finest_energy(frames: Tensor) -> Tensor:
    """Mean square of the highest octave of frequencies of frames (..., 3, H, W): (...)."""
    return octave_energies(frames, 1)[..., 0]


def detail_ratio(made: Tensor, truth: Tensor) -> float:
    """The energy of the finest octave in all frames but the first, as a share of the moved truth's."""
    return float(finest_energy(made[:, 1:]).mean() / finest_energy(truth[:, 1:]).mean())


def has_letters_of(clips: Clips, pixels: float = LETTER_PIXELS) -> Tensor:
    """Whether a page drawn for the clips has letters of this height within half a pixel, (B,)."""
    layout = PageLayout.of(Numbers.of(clips.seeds, SCENE_STREAMS))
    return ((2 * layout.half * 128 - pixels).abs() < 0.5)[:, 0, 0]


@dataclass(frozen=True)
class Reader:
    """Reads the letters about the middle of pages by likeness with each letter, where they should be."""

    numbers: Numbers
    layout: PageLayout
    cells: Tensor  # (B, rows * HIGH, columns * WIDE, 2)
    letters: Tensor  # (B, rows * columns)
    is_there: Tensor

    @classmethod
    def of(cls, clips: Clips) -> Reader:
        """A reader of the pages that clips show."""
        numbers = Numbers.of(clips.seeds, SCENE_STREAMS)
        device, count = clips.seeds.device, len(clips.seeds)
        across = (torch.arange(COLUMNS * WIDE, device=device) + 0.5) / WIDE - COLUMNS // 2
        down = (torch.arange(ROWS * HIGH, device=device) + 0.5) / HIGH - ROWS // 2
        y, x = torch.meshgrid(down, across, indexing="ij")
        cells = torch.stack([x, y], -1).expand(count, -1, -1, -1)
        letters, is_there = letters_at(numbers, cells)
        middle = (slice(None), slice(HIGH // 2, None, HIGH), slice(WIDE // 2, None, WIDE))
        return cls(numbers, PageLayout.of(numbers), cells, letters[middle].flatten(1), is_there[middle].flatten(1))

    def read(self, frames: Tensor, pose: Tensor) -> tuple[Tensor, Tensor]:
        """Reads frames (B, 3, H, W) to which the page came by a pose (B, 4).

        Returns which letters were read, and which could be: those that are there and within the frame, both
        (B, rows * columns).
        """
        centre = torch.zeros(len(pose), 2, device=pose.device)
        where = _moved(self.layout.points(self.cells), pose, centre)
        seen = F.grid_sample(grey(frames)[:, None], where, align_corners=False)[:, 0]
        sign = torch.where(has_light_letters(self.numbers), 1.0, -1.0)[:, None, None]
        patches = _patches(seen * sign)
        likeness = torch.einsum("bnp,lp->bnl", _standard(patches), _standard(_templates(pose.device)))
        inside = (_patches(where.abs().amax(-1)).amax(-1) < 1 - MARGIN) & self.is_there
        return likeness.argmax(-1), inside


def letters_read(clips: Clips, made: Tensor, truth: Tensor) -> float:
    """Of the letters read rightly in the true frames (B, F, 3, H, W), the share read rightly in those made."""
    reader, count = Reader.of(clips), made.shape[1]
    far, _ = poses(clips, frame_indices(len(clips.seeds), count, clips.seeds.device))
    right = wanted = 0
    for index in range(1, count):
        in_truth, inside = reader.read(truth[:, index], far[:, index])
        legible = inside & (in_truth == reader.letters)
        found, _ = reader.read(made[:, index], far[:, index])
        wanted += int(legible.sum())
        right += int((legible & (found == reader.letters)).sum())
    return right / max(wanted, 1)


def _moved(points: Tensor, pose: Tensor, centre: Tensor) -> Tensor:
    """Where the content at points (B, H, W, 2) goes by a pose."""
    return torch.cat([destination(points[k], pose[k : k + 1], centre[k : k + 1]) for k in range(len(pose))])


def _patches(grid: Tensor) -> Tensor:
    """(B, rows * HIGH, columns * WIDE) -> (B, rows * columns, HIGH * WIDE)."""
    tiles = grid.unflatten(1, (ROWS, HIGH)).unflatten(3, (COLUMNS, WIDE))
    return tiles.transpose(2, 3).flatten(3).flatten(1, 2)


def _templates(device: torch.device) -> Tensor:
    """How each letter looks at the size that is read, (letters, HIGH * WIDE)."""
    down = (torch.arange(HIGH, device=device) + 0.5) / HIGH
    across = (torch.arange(WIDE, device=device) + 0.5) / WIDE
    y, x = torch.meshgrid(down, across, indexing="ij")
    cells = torch.stack([x, y], -1).expand(len(LETTERS), -1, -1, -1)
    letters = torch.arange(len(LETTERS), device=device).view(-1, 1, 1).expand(cells.shape[:3])
    return torch.sigmoid(-2.5 * letter_fields(letters, cells) * LETTER_PIXELS / 2).flatten(1)


def _standard(patches: Tensor) -> Tensor:
    """Without their mean, of length 1."""
    centred = patches - patches.mean(-1, keepdim=True)
    return centred / centred.norm(dim=-1, keepdim=True).clamp_min(1e-6)

"""Frames to measure filters on: nothing in them rests, so that no frame is left out."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def moving(count: int, height: int, width: int) -> Iterator[torch.Tensor]:
    """Frames [height, width, 3] of waves of many lengths that go by: every part moves, no two frames are alike."""
    y, x = torch.linspace(0, height / 64, height)[:, None], torch.linspace(0, width / 64, width)
    for number in range(count):
        shift = number * 0.11
        waves = [torch.sin(k * (x * a + y * b) + k * shift) / k for k, a, b in ((1, 1, 0.3), (3, 0.7, 1), (7, 1, -0.6))]
        grey = sum(waves, torch.zeros(())) / 4 + 0.5
        yield torch.stack([grey, grey.flip(0), grey.flip(1)], dim=-1).clamp(0, 1)

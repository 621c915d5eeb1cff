"""Judges an interpolation network on held-out clips, beside blending and repeating."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from .clips import draw, held_out_seeds, render
from .interpolation_clips import take
from .measure import psnr

GAPS = (1, 3, 6)
"""Frames between the two pictures that are shown to the network; the very middle is asked for."""
FIRST = 20000
"""Held-out clips from here on: others than the checkpoint is judged on."""
STILL = 1 / 255
"""Pictures that differ nowhere by more show no motion; figures leave such pairs out and count them."""
PART = 24

Middle = Callable[[Tensor, Tensor], Tensor]


def pairs(gap: int, count: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """First, second and middle pictures (count, 3, 128, 128) of held-out clips, a gap of frames apart."""
    clips = draw(held_out_seeds(FIRST, count, device))
    indices = torch.tensor([0.0, gap / 2, gap], device=device)
    made = [
        render(take(clips, torch.arange(at, min(at + PART, count), device=device)), indices.expand(part, 3))
        for at in range(0, count, PART)
        for part in [min(PART, count - at)]
    ]
    frames = torch.cat(made)
    return frames[:, 0], frames[:, 2], frames[:, 1]


@torch.no_grad()
def decibels(middle: Middle, first: Tensor, second: Tensor, truth: Tensor) -> Tensor:
    """PSNR of each pair's middle picture, (B,)."""
    parts = zip(first.split(PART), second.split(PART), truth.split(PART), strict=True)
    return torch.cat([psnr(middle(a, b).clamp(0, 1), c) for a, b, c in parts])


def middle_of(network: torch.nn.Module) -> Middle:
    """A network's picture in the very middle."""

    def middle(first: Tensor, second: Tensor) -> Tensor:
        return network(first, second, first.new_full((len(first), 1, 1, 1), 0.5))

    return middle


def blend(first: Tensor, second: Tensor) -> Tensor:
    """The mean of both."""
    return (first + second) / 2


def measure(network: torch.nn.Module, count: int, device: torch.device) -> dict[str, object]:
    """Mean and worst decibels at each gap for the network and, beside it, blending and repeating the first."""
    exact, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    figures: dict[str, object] = {"clips": count}
    try:
        for gap in GAPS:
            first, second, truth = pairs(gap, count, device)
            moving = (first - second).abs().amax((1, 2, 3)) > STILL
            figures[f"gap{gap}_moving"] = int(moving.sum())
            ways = {"": middle_of(network), "_blend": blend, "_repeat": lambda a, _: a}
            for name, middle in ways.items():
                found = decibels(middle, first, second, truth)
                figures[f"gap{gap}_db{name}"] = round(float(found.mean()), 2)
                figures[f"gap{gap}_moving_db{name}"] = round(float(found[moving].mean()), 2)
                figures[f"gap{gap}_worst_db{name}"] = round(float(found.min()), 2)
    finally:
        torch.backends.cudnn.allow_tf32 = exact
    return figures


@torch.no_grad()
def save_pairs(path: Path, network: torch.nn.Module, device: torch.device, rows: int = 10, gap: int = 6) -> None:
    """A sheet with a row for each pair: first, second, the network's middle, the truth, blending, and ten times the
    network's error."""
    from PIL import Image

    first, second, truth = pairs(gap, rows, device)
    made = middle_of(network)(first, second).clamp(0, 1)
    error = ((made - truth) * 10 / 2 + 0.5).clamp(0, 1)
    strip = torch.stack([first, second, made, truth, blend(first, second), error], dim=1).cpu()
    count, columns, _, height, width = strip.shape
    sheet = strip.permute(0, 3, 1, 4, 2).reshape(count * height, columns * width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet * 255).round().to(torch.uint8).numpy()).save(path)

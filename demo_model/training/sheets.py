"""Contact sheets and the loss curve as PNG files."""

from pathlib import Path

import torch
from torch import Tensor

SHOWN = (0, 3, 6, 9, 12, 15)
LABEL = 14  # pixels of a row's caption


def save_sheet(path: Path, clips: Tensor, labels: list[str], fps: list[int], truth: Tensor | None = None) -> None:
    """One row a clip (B, F, 3, H, W), six frames each; the procedural truth to the right where given."""
    from PIL import Image, ImageDraw

    parts = [clips] if truth is None else [clips, truth]
    shown = [index for index in SHOWN if index < clips.shape[1]]
    strip = torch.cat([part[:, shown] for part in parts], dim=1).cpu()
    count, columns, _, height, width = strip.shape
    sheet = Image.new("RGB", (columns * width, count * (height + LABEL)), "white")
    pen = ImageDraw.Draw(sheet)
    for row in range(count):
        top = row * (height + LABEL)
        pen.text((2, top + 1), f"{labels[row]}  ({fps[row]} fps)", fill="black")
        for column in range(columns):
            pixels = (strip[row, column].permute(1, 2, 0).clamp(0, 1) * 255).round().to(torch.uint8).numpy()
            sheet.paste(Image.fromarray(pixels), (column * width, top + LABEL))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def save_curve(path: Path, curves: dict[str, list[list[float]]]) -> None:
    """Loss against step on logarithmic axes of loss, one panel a stage, drawn without a plotting library."""
    from math import log10

    from PIL import Image, ImageDraw

    width, height, edge = 520, 300, 46
    sheet = Image.new("RGB", (width * len(curves), height), "white")
    pen = ImageDraw.Draw(sheet)
    for panel, (name, points) in enumerate(curves.items()):
        left = panel * width
        steps = [point[0] for point in points]
        losses = [log10(max(point[1], 1e-9)) for point in points]
        low, high = min(losses), max(losses)
        across, down = width - 2 * edge, height - 2 * edge
        line = [
            (left + edge + across * s / steps[-1], edge + down * (high - v) / max(high - low, 1e-9))
            for s, v in zip(steps, losses, strict=True)
        ]
        pen.rectangle((left + edge, edge, left + width - edge, height - edge), outline="grey")
        pen.line(line, fill="blue", width=1)
        pen.text((left + edge, 8), f"{name}: loss against step", fill="black")
        pen.text((left + 2, edge - 6), f"{10**high:.4f}", fill="black")
        pen.text((left + 2, height - edge - 6), f"{10**low:.4f}", fill="black")
        pen.text((left + width - edge - 30, height - edge + 4), f"{steps[-1]:.0f}", fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)

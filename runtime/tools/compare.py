"""Two clips compared: pictures of both and of their difference, and a table of how far apart they are."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from ...common.errors import InputError
from ...pipeline.quality.comparison import Comparison, OnFrame, compare, heat_map, make_pair, side_by_side
from .table import Table

MAX_LABEL = 200
NOTHING = "–"


@dataclass(frozen=True)
class Compared:
    """Both clips in one, their difference (float32 [frames, height, width, 3] in 0..1), and the figures."""

    both: Tensor
    difference: Tensor
    figures: Comparison
    table: Table
    line: str


def compare_clips(one: Tensor, other: Tensor, labels: tuple[str, str], brightest: float, on_frame: OnFrame) -> Compared:
    """Compares two clips [frames, height, width, 1 | 3 | 4] in 0..1 frame by frame.

    `brightest` is the difference that the heat map shows brightest; 0 takes the greatest that there is. Raises
    InputError for clips of different size or count, values that are not finite, or settings out of range.
    """
    if not 0 <= brightest <= 1:
        raise InputError(f"The brightest difference is a number from 0 to 1, found {brightest}.")
    longest = max(map(len, labels))
    if longest > MAX_LABEL:
        raise InputError(f"A label has at most {MAX_LABEL} characters, found {longest}.")
    pair = make_pair(one, other)
    figures = compare(*pair, on_frame)
    shown = brightest or figures.greatest or 1.0
    return Compared(
        side_by_side(*pair, labels), heat_map(*pair, shown), figures, _table(figures, labels, shown), _line(figures)
    )


def _table(figures: Comparison, labels: tuple[str, str], brightest: float) -> Table:
    worst = min(range(figures.num_frames), key=figures.psnr_db.__getitem__)
    where = f"frame {figures.frame}, at {figures.x}, {figures.y}" if figures.greatest else ""
    first, second = (label.strip() or default for label, default in zip(labels, ("first", "second"), strict=True))
    return Table(
        ("figure", "value", "where"),
        (
            ("clip", f"{figures.num_frames} frames of {figures.width}x{figures.height}", ""),
            ("PSNR", _decibel(figures.whole_psnr_db), ""),
            ("PSNR, worst", _decibel(figures.psnr_db[worst]), f"frame {worst}"),
            ("SSIM, mean", _figure(_mean(figures.ssim)), ""),
            ("SSIM, worst", _figure(min(figures.ssim, default=None)), ""),
            ("greatest difference", _difference(figures.greatest), where),
            (f"flicker, {first}", _figure(figures.flicker[0]), ""),
            (f"flicker, {second}", _figure(figures.flicker[1]), ""),
            ("heat map", f"brightest from {_difference(brightest)}", ""),
        ),
    )


def _line(figures: Comparison) -> str:
    similarity = f", SSIM {_figure(_mean(figures.ssim))}" if figures.ssim else ""
    return f"PSNR {_decibel(figures.whole_psnr_db)}{similarity}"


def _mean(values: tuple[float, ...]) -> float | None:
    return sum(values) / len(values) if values else None


def _decibel(value: float) -> str:
    return "equal" if value == math.inf else f"{value:.2f} dB"


def _difference(value: float) -> str:
    """A share of 1, which may be very small."""
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _figure(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.4f}"

"""Figures of a preset's clip beside the exact one, and their summary over all clips."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ...pipeline.quality.metrics import SSIM_WINDOW, psnr, ssim, temporal_flicker
from ...pipeline.quality.similarity import MAX_DB
from .clips import JudgedClip, motion_of, moves_right


@dataclass(frozen=True)
class Line:
    """The least that a preset must reach against the exact clips, over all of them."""

    psnr_db: float
    worst_psnr_db: float | None
    ssim: float | None
    still_right_percent: float


LINES = {
    "near": Line(34.0, 30.0, None, 98.0),
    "fast": Line(28.0, None, None, 97.0),
    "real time": Line(24.0, None, 0.85, 95.0),
}


def figures_of(frames: torch.Tensor, clip: JudgedClip, reference: torch.Tensor | None) -> dict[str, Any]:
    """Steadiness, speed and direction of frames [frames, height, width, 3] in 0..1, and their distance to others."""
    motion = motion_of(frames)
    found: dict[str, Any] = {"speed": motion.speed, "warping_error": motion.warping_error}
    if len(frames) > 1:
        found["flicker"] = temporal_flicker(frames)
    if clip.known is not None:
        found["right"] = moves_right(frames, clip.known)
    if reference is None:
        return found
    pairs = list(zip(reference, frames, strict=True))
    found["psnr_db"] = min(psnr(reference, frames), MAX_DB)
    found["worst_frame_psnr_db"] = min(min(psnr(one, other), MAX_DB) for one, other in pairs)
    if min(frames.shape[1:3]) >= SSIM_WINDOW:
        found["ssim"] = sum(ssim(one, other) for one, other in pairs) / len(pairs)
    return found


Rows = Mapping[str, Mapping[str, Any]]
"""A variant's rows by the clip's name."""


def summary(rows: Rows, exact: Rows) -> dict[str, Any]:
    """Means over a variant's clips, of those that the exact preset has too.

    `still_right_percent` counts the clips whose direction the exact preset has right.
    """
    names = [name for name in rows if name in exact]
    some = [rows[name] for name in names]
    found: dict[str, Any] = {"clips": len(some), "seconds": _mean(some, "sample_s") + _mean(some, "decode_s")}
    found |= {key: _mean(some, key) for key in ("sample_s", "calls", "psnr_db", "ssim", "flicker", "warping_error")}
    found["worst_psnr_db"] = min((row["psnr_db"] for row in some if "psnr_db" in row), default=math.nan)
    speeds = [(rows[name]["speed"], exact[name]["speed"]) for name in names]
    found["speed_off"] = sum(abs(one - other) for one, other in speeds) / max(len(speeds), 1)
    judged = [name for name in names if exact[name].get("right")]
    if judged:
        found["still_right_percent"] = 100 * sum(rows[name]["right"] for name in judged) / len(judged)
    return {key: value for key, value in found.items() if not (isinstance(value, float) and math.isnan(value))}


def keeps(line: Line, found: Mapping[str, Any]) -> list[str]:
    """Sentences on what of the line is not kept; empty where all of it is."""
    wanted = {
        "psnr_db": line.psnr_db,
        "worst_psnr_db": line.worst_psnr_db,
        "ssim": line.ssim,
        "still_right_percent": line.still_right_percent,
    }
    return [
        f"{name} is {found[name]:.2f}, expected at least {least:g}"
        for name, least in wanted.items()
        if least is not None and name in found and found[name] < least
    ]


def _mean(rows: Sequence[Mapping[str, Any]], name: str) -> float:
    values = [float(row[name]) for row in rows if name in row]
    return sum(values) / len(values) if values else math.nan

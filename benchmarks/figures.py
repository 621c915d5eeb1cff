"""A file of flat figures that several benchmarks fill: each its own, null for those that have not been measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from ..common.atomic_file import write_text

FEWER = (
    "exact_s",
    "near_s",
    "fast_s",
    "real_time_s",
    "near_psnr_db",
    "fast_psnr_db",
    "real_time_psnr_db",
    "svd_near_s",
    "svd_fast_s",
)
"""Figures of presets, in seconds from picture to file and dB against the exact clip."""


def write_figures(path: Path, found: Mapping[str, float], names: tuple[str, ...] = FEWER) -> None:
    """Puts figures of those names into the file, and leaves the others as they are."""
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    figures = {name: round(found[name], 3) if name in found else kept.get(name) for name in names}
    write_text(path, json.dumps(figures, indent=1) + "\n")

"""A file of flat figures that several benchmarks fill: each its own, null for those that have not been measured."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

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

WAN = (
    "call_480p_bf16_ms",
    "compile_480p_ms",
    "call_480p_fp8_ms",
    "call_720p_bf16_ms",
    "compile_720p_ms",
    "call_720p_fp8_ms",
    "four_steps_bf16_s",
    "four_steps_fp8_s",
    "build_s",
    "load_s",
    "peak_gib",
    "ratio_8_gib",
    "ratio_12_gib",
    "ratio_16_gib",
    "ratio_24_gib",
    "svd_clip_s",
)
"""Figures of Wan 14B's call, of its build, and of cards that its weights do not fit; and of SVD-XT's clip."""

SCALE = (
    "svd_ratio",
    "i2vgen_xl_ratio",
    "wan_guided_ratio",
    "wan_ratio",
    "four_steps_ratio",
    "fleet_ratio",
    "fleet_overhead_ms",
)
"""Figures of more than one GPU against one, as ratios, and of what a fleet adds to a clip."""

DYNAMICRAFTER = (
    "parity_max",
    "ours_1024_ms",
    "compile_1024_ms",
    "fp32_1024_ms",
    "clip_1024_s",
    "clip_512_s",
    "nan_step_counts",
)
"""DynamiCrafter: its networks' greatest relative difference from diffusers' modules in fp32, its call in fp16 by the
pack's engine, by the best `torch.compile` and eager in fp32, seconds from noise to frames, and how many of the numbers
of steps give latents that are not finite."""


def write_figures(path: Path, found: Mapping[str, float], names: tuple[str, ...] = FEWER) -> None:
    """Puts figures of those names into the file, and leaves the others as they are."""
    add_values(path, {name: round(found[name], 3) for name in names if name in found}, names)


def add_values(path: Path, values: Mapping[str, Any], names: Iterable[str] = ()) -> None:
    """Adds values to a JSON file, which is written whole or not at all; `names` that it lacks are null there."""
    found = dict.fromkeys(names)
    with suppress(OSError, ValueError):
        found |= json.loads(path.read_text("utf-8"))
    write_text(path, json.dumps(found | dict(values), indent=1) + "\n")

"""The ladder of benchmarks/ in a process of its own: few and small clips, with progress, ended on request.

A process, because each of its rows must find the device as free as a user's would, and may crash.
"""

from __future__ import annotations

import json
import math
import os
import queue
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from PIL import Image

from ...common.child_process import child_environment, end, hear, last_line
from ...common.errors import EngineError, InputError
from ...common.pack_paths import BUNDLED, BUNDLED_NAME, PACK, PICTURE
from ...engine_builder.backends.base import Report
from ...engine_builder.backends.registry import AUTO, BACKENDS, choose_backend
from ...pipeline.acceleration.presets import PRESET_NAMES
from ...pipeline.media.image import to_unit_tensor
from .table import Table

COMMAND = (str(PACK / "run.py"), "--inside", "bench", "ladder")
JUDGE = (str(PACK / "run.py"), "--inside", "evaluate")
QUICK, BACKENDS_ALL, EVERYTHING, PRESETS = "quick", "backends", "everything", "presets"
CHOICES = (QUICK, BACKENDS_ALL, EVERYTHING, PRESETS)
REFERENCE = "diffusers-fp32"
COMPILED = ("compile-default", "compile-max")
"""The ladder's names for torch.compile of the published pipeline."""
MIN_MINUTES, MAX_MINUTES = 1, 240
LEAST_JUDGED_STEPS = 25
"""Below it most presets leave nothing out."""
JUDGED_CLIPS = 4
"""Of the bundled model, one of each motion; of another one, the bundled picture once."""
POLL_S = 0.2
MAX_LINE = 100
GRACE_S = 15.0
"""Seconds that the ladder may take to end its current row."""
_LINE = re.compile(r"\[ *[\d.]+ s\] (.*)")


@dataclass(frozen=True)
class BenchmarkOrder:
    """A benchmark's checkpoint folder, one of `CHOICES`, the clip in pixels and frames, and a limit in minutes."""

    folder: Path
    rows: str
    width: int
    height: int
    num_frames: int
    steps: int
    minutes: int

    def __post_init__(self) -> None:
        if self.rows not in CHOICES:
            raise InputError(f"The rows are one of {', '.join(CHOICES)}, found {self.rows!r}.")
        if not MIN_MINUTES <= self.minutes <= MAX_MINUTES:
            raise InputError(f"Minutes are {MIN_MINUTES} to {MAX_MINUTES}, found {self.minutes}.")


@dataclass(frozen=True)
class BenchmarkResult:
    """The page of figures as Markdown, the plot, float32 [1, height, width, 3] in 0..1, and the rows in short."""

    markdown: str
    plot: torch.Tensor
    table: Table
    line: str


def row_names(rows: str, device: torch.device) -> list[str]:
    """The ladder's rows of a choice on this device: each that can run, row 0 first."""
    usable = [name for name, backend in BACKENDS.items() if backend.availability(device).ok]
    if rows == QUICK:
        usable = ["eager", choose_backend(AUTO, device).name]
    return list(dict.fromkeys([REFERENCE, *usable, *(COMPILED if rows == EVERYTHING else ())]))


def run_benchmark(order: BenchmarkOrder, device: torch.device, work: Path, report: Report) -> BenchmarkResult:
    """Runs the ladder; its files are in `work`, which the caller removes.

    `report` is called with the stage and the fraction of rows, at least every 0.2 s, and may raise to end the run.
    Raises EngineError when no row could be measured.
    """
    out, log = work / "out", work / "benchmark.log"
    names = [] if order.rows == PRESETS else row_names(order.rows, device)
    count = len(names) or JUDGED_CLIPS * (len(PRESET_NAMES) + 1)
    with log.open("w", encoding="utf-8") as errors:
        command = _ladder(order, names, work) if names else _judge(order, work)
        status = _listen(_start(command, device, errors), count, report)
    ended = f"ended with status {status}; its last words: {last_line(log)}"
    return _result(out, names, ended) if names else _judged(out, ended)


def _ladder(order: BenchmarkOrder, names: list[str], work: Path) -> list[str]:
    """The command that measures rows of the ladder."""
    model = BUNDLED_NAME if order.folder.resolve() == BUNDLED else str(order.folder)
    options = {
        "model": model,
        "size": f"{order.width}x{order.height}",
        "frames": order.num_frames,
        "steps": order.steps,
        "rows": ",".join(names),
        "rewrites": "none",
        "minutes": order.minutes,
        "out": work / "out",
        "work": work,
    }
    return [*COMMAND, "--no-warm", *(f"--{name}={value}" for name, value in options.items())]


def _judge(order: BenchmarkOrder, work: Path) -> list[str]:
    """The command that judges the presets."""
    options = {
        "model": order.folder,
        "size": f"{order.width}x{order.height}x{order.num_frames}",
        "steps": max(order.steps, LEAST_JUDGED_STEPS),
        "picture": PICTURE,
        "minutes": order.minutes,
        "out": work / "out",
    }
    return [*JUDGE, *(f"--{name}={value}" for name, value in options.items())]


def _start(command: list[str], device: torch.device, errors: IO[str]) -> subprocess.Popen[str]:
    # Our own interpreter and our own file; of the options, only numbers and a known folder come from a user.
    return subprocess.Popen(  # noqa: S603
        [sys.executable, *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        encoding="utf-8",
        errors="replace",
        env=child_environment({"PYTHONIOENCODING": "utf-8", "CUDA_VISIBLE_DEVICES": _visible(device)}),
        start_new_session=True,
    )


def _visible(device: torch.device) -> str:
    """The one GPU that the ladder may see, by the names under which this process sees its own."""
    if device.type != "cuda":
        return ""
    index, listed = device.index or 0, os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return listed.split(",")[index] if listed else str(index)


def _listen(process: subprocess.Popen[str], count: int, report: Report) -> int:
    """Passes on the ladder's progress until its end; returns its exit status."""
    lines = hear(process)
    stage, begun = "starting", 0
    try:
        while True:
            report(stage, max(begun - 1, 0) / count)
            try:
                line = lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if line is None:
                report("done", 1.0)
                return process.wait(GRACE_S)
            if found := _LINE.match(line):
                stage = found[1].strip()[:MAX_LINE]
                begun += stage.endswith(" ...")
    finally:
        end(process, GRACE_S)  # which ends the process of its row


def _result(out: Path, names: list[str], ended: str) -> BenchmarkResult:
    try:
        text = (out / "ladder.md").read_text("utf-8")
        rows = json.loads((out / "ladder.json").read_text("utf-8"))["rows"]
    except OSError:
        raise EngineError(f"The benchmark {ended}") from None
    measured = [row for row in rows if "clip_hot_s" in row["figures"]]
    if not measured or not (out / "ladder.png").is_file():
        reasons = [f"{row['title']}: {row['reason']}" for row in rows if row["reason"]]
        raise EngineError(f"The benchmark measured nothing. {reasons[0] if reasons else ended}")
    shown = [row for row in rows if row["figures"] or row["name"] in names]
    table = Table(("row", "s a clip", "times row 0", "ms a step", "SSIM to row 0", "note"), tuple(map(_cells, shown)))
    best = min(measured, key=lambda row: row["figures"]["clip_hot_s"])
    line = f"fastest: {best['title']}, {best['figures']['clip_hot_s']:.2f} s a clip"
    return BenchmarkResult(text, _picture(out / "ladder.png"), table, line)


def _judged(out: Path, ended: str) -> BenchmarkResult:
    """The judge's page, plot and table."""
    try:
        text = (out / "evaluation.md").read_text("utf-8")
        found = json.loads((out / "evaluation.json").read_text("utf-8"))
        plot = _picture(out / "frontier.png")
    except OSError:
        raise EngineError(f"The benchmark {ended}") from None
    rows = []
    for name, row in found["summary"].items():
        figures = (row.get("seconds"), row.get("calls"), row.get("psnr_db"), row.get("ssim"))
        digits = (2, 0, 1, 4)
        cells = ["–" if x is None else f"{x:.{n}f}" for x, n in zip(figures, digits, strict=True)]
        rows.append((name, *cells))
    table = Table(("preset", "s a clip", "calls", "PSNR to exact, dB", "SSIM"), tuple(rows))
    best = min(found["summary"].items(), key=lambda each: each[1].get("seconds", math.inf))
    return BenchmarkResult(text, plot, table, f"fastest: {best[0]}, {best[1].get('seconds', math.nan):.2f} s a clip")


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    figures = row["figures"]
    values = (figures.get("clip_hot_s"), row["ratios"].get("reference"), figures.get("step_ms"))
    told = ["–" if value is None else f"{value:.{digits}f}" for value, digits in zip(values, (2, 2, 1), strict=True)]
    similarity = figures.get("frames_ssim_mean")
    return (row["title"], *told, "–" if similarity is None else f"{similarity:.4f}", row["reason"])


def _picture(path: Path) -> torch.Tensor:
    """The plot on white: its corners are clear."""
    with Image.open(path) as drawn:
        card = drawn.convert("RGBA")
    plot = Image.new("RGB", card.size, (255, 255, 255))
    plot.paste(card, mask=card)
    return to_unit_tensor(plot).movedim(1, -1)

"""`run.py bench frames`: what comes after the clip, row by row: interpolation, upscaling, a long film, two phases.

Frames a second are beside the core's own nodes in the same ComfyUI, with the same frames in memory and the same
weights. Decibels of the interpolation network come from the figures that its training wrote. Figures go into one flat
JSON file as they are measured; a figure without a measurement is null.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from ..common.device import default_device
from ..common.errors import I2VError
from ..common.pack_paths import INTERPOLATION, PACK
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..remote.comfyui.server import find_comfyui, not_found_reason, start_server
from . import frames_beside_core, judged_frames
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .live import ARGUMENTS, Report

RESULTS = Path(__file__).resolve().parent / "results" / "frames" / "figures.json"
NAMES = (
    "gap1_db", "gap3_db", "gap6_db", "interpolation_fps", "core_interpolation_fps", "upscale_fps", "core_upscale_fps",
    "two_phase_ratio",
)  # fmt: skip
"""The figures that this project is held to; the file may have others."""
ALONE: dict[str, Callable[[Report, argparse.Namespace], None]] = {
    "warping": judged_frames.warping,
    "bundled-phases": judged_frames.bundled_phases,
    "phases": judged_frames.published_phases,
}
"""Rows that need no ComfyUI."""
ROWS = (*frames_beside_core.ROWS, *ALONE)


def main(argv: Sequence[str]) -> int:
    """Measures row by row; 1 where a row failed, 2 for an unknown one."""
    options = parser().parse_args(argv)
    names = options.rows.split(",")
    unknown = [name for name in names if name not in ROWS]
    if unknown:
        sys.stderr.write(f"run.py bench frames: expected rows among {', '.join(ROWS)}, found {unknown[0]!r:.80}.\n")
        return 2
    report = Report(options.out, NAMES, "frames.json")
    report.note(**_decibels())
    live = [name for name in frames_beside_core.ROWS if name in names]
    done = [_in_comfyui(live, report, options)] if live else []
    for name in (name for name in ALONE if name in names):
        _begin(name, report, options)
        done.append(_tried(name, lambda name=name: ALONE[name](report, options)))
    return 0 if all(done) else 1


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench frames", description=__doc__)
    add = top.add_argument
    add("--rows", default=",".join(ROWS), metavar="NAMES", help="by commas (%(default)s)")
    add("--width", type=int, default=1920, help="of the frames that are interpolated (%(default)s)")
    add("--height", type=int, default=1080, help="the same (%(default)s)")
    add("--frames", type=int, default=48, metavar="N", help="frames of the clip that each node gets (%(default)s)")
    add("--rounds", type=int, default=3, metavar="N", help="runs of each way after the first, by turns (%(default)s)")
    add("--film", type=int, default=1000, metavar="N", help="frames of the film that is streamed (%(default)s)")
    add("--film-minutes", type=float, default=30.0, metavar="M", help="the most that the film takes (%(default)s)")
    add("--side", type=int, default=512, metavar="PIXELS", help="side of the frames that are upscaled (%(default)s)")
    add("--upscale-frames", type=int, default=16, metavar="N", help="frames that are upscaled (%(default)s)")
    add("--clips", type=int, default=8, metavar="N", help="clips of the bundled model that are judged (%(default)s)")
    add("--steps", type=int, default=50, metavar="N", help="of a clip (%(default)s)")
    add("--strength", type=float, default=0.35, help="part of the steps at the large size (%(default)s)")
    add("--bundled-sizes", default="128x128x16,256x256x16", metavar="A,B", help="of bundled-phases (%(default)s)")
    add("--sizes", default="576x320x16,1280x704x16", metavar="A,B", help="of phases (%(default)s)")
    add("--tiny", action="store_true", help="a tiny checkpoint for phases, to try the row itself; gives no figure")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    add("--checkpoints", type=Path, default=PACK / ".cache" / "checkpoints", metavar="DIR", help="(%(default)s)")
    add("--store", type=Path, default=PACK / ".cache" / "engines", metavar="DIR", help="the engines (%(default)s)")
    add("--work", type=Path, metavar="DIR", help="ComfyUI's folder, kept; a temporary one otherwise")
    add("--out", type=Path, default=RESULTS, metavar="FILE", help="the JSON file of all figures (%(default)s)")
    add("--commit", metavar="TEXT", help="what was measured, where this is no checkout")
    return top


def _begin(name: str, report: Report, options: argparse.Namespace) -> None:
    """Notes where and when a row is measured: the file keeps rows of other machines."""
    origin = {
        "date": now(),
        "machine": describe_machine(default_device()),
        "versions": describe_versions(),
        "commit": describe_commit(options.commit),
    }
    report.note(**{f"{name.replace('-', '_')}_on": origin})


def _decibels() -> dict[str, float]:
    """The decibels of the weights in use, as their training measured them."""
    found = json.loads(INTERPOLATION.with_name("figures.json").read_text("utf-8"))
    return {name: found[name] for name in NAMES if name in found}


def _in_comfyui(names: Sequence[str], report: Report, options: argparse.Namespace) -> bool:
    """The rows that stand beside the core's nodes, in one server; whether all succeeded."""
    host = find_comfyui()
    if host is None:
        sys.stderr.write(f"run.py bench frames: {', '.join(names)}: {not_found_reason()}\n")
        return False
    device = [] if default_device().type == "cuda" else ["--cpu"]
    done: list[bool] = []

    def measure() -> None:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            base = options.work or Path(temporary)
            frames_beside_core.fill(base, names, options)
            with start_server(host, base, [*ARGUMENTS, *device]) as server:
                for name in names:
                    _begin(name, report, options)
                    row = frames_beside_core.ROWS[name]
                    done.append(_tried(name, lambda row=row: row(server, report, options)))

    return _tried("ComfyUI", measure) and all(done)


def _tried(name: str, run: Callable[[], None]) -> bool:
    """Whether a row succeeded; one that fails says why, and the next is measured."""
    try:
        run()
    except (I2VError, OSError, RuntimeError) as error:
        sys.stderr.write(f"run.py bench frames: {name}: {error}\n")
        return False
    return True

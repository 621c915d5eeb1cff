"""`run.py bench dynamicrafter`: DynamiCrafter's call and clip at 320x512 and 576x1024, 16 frames, guidance 7.5.

Weights are random ones of the published size: speed does not depend on them. Each row at each size has a process of
its own; all prepare side by side, compilers and all, and are then measured one at a time, in turn. The rows `parity`
and `schedule` need no GPU. Everything is written after each figure, so that a run that is ended leaves what it had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.atomic_file import write_text
from ..common.device import default_device
from ..common.errors import I2VError
from ..common.pack_paths import PACK
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..pipeline.dummies.dynamicrafter import write_tiny_dynamicrafter
from ..pipeline.dummies.full_size import write_full_checkpoint
from ..pipeline.request import ClipSize
from .dynamicrafter_rows import ROWS, Row, Setting, likeness
from .figures import DYNAMICRAFTER, add_values
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .measured_child import READY, ask, end, tell, wait_ready

RESULTS = Path(__file__).resolve().parent / "results" / "dynamicrafter"
WORK = PACK / ".cache" / "dynamicrafter"
SIZES = {"1024": ClipSize(1024, 576, 16), "512": ClipSize(512, 320, 16)}
"""Published sizes, by the names that their figures have."""
TINY_SIZE = ClipSize(64, 64, 16)
CHECKS = ("parity", "schedule")
USUAL = ("ours", "compile", "autocast", "fp32")
REFERENCE = "fp32"
Rows = dict[str, dict[str, Any]]


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench dynamicrafter", description=__doc__)
    add = top.add_argument
    every = ", ".join((*ROWS, *CHECKS))
    add("--rows", type=_names, default=list(USUAL), metavar="NAME,...", help=f"of {every} ({','.join(USUAL)})")
    add("--sizes", type=_names, default=list(SIZES), metavar="NAME,...", help=f"of {', '.join(SIZES)} (both)")
    add("--samples", type=int, default=5, metavar="N", help="calls of each row in each round (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="times that all rows are measured, in turn (%(default)s)")
    add("--steps", type=int, default=50, metavar="N", help="of the clip (%(default)s)")
    add("--latent-steps", type=int, default=10, metavar="N", help="of latents against fp32; 0 for none (%(default)s)")
    add("--minutes", type=float, default=5.0, metavar="M", help="for preparing; rows that are not ready are left out")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO, help="of the row ours (%(default)s)")
    add("--tiny", action="store_true", help="a tiny checkpoint and clip, to try the benchmark itself")
    add("--out", type=Path, metavar="DIR", help=f"calls.json and figures.json ({RESULTS}; with --tiny in --work)")
    add("--work", type=Path, default=WORK, metavar="DIR", help="the checkpoint and the engines (%(default)s)")
    add("--commit", metavar="TEXT", help="what was measured, where this is no checkout")
    add("--child", help=argparse.SUPPRESS)
    return top


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main(argv: Sequence[str]) -> int:
    """Measures the rows; 0 when each that was asked for gave its figures, else 1."""
    options = parser().parse_args(argv)
    wrong = [name for name in options.rows if name not in (*ROWS, *CHECKS)]
    wrong += [name for name in options.sizes if name not in SIZES]
    if wrong:
        sys.stderr.write(f"run.py bench dynamicrafter: expected names of the help, found {', '.join(wrong)}.\n")
        return 2
    if options.child:
        row, _, size = options.child.partition("@")
        return _child(ROWS[row](_setting(size, options)), result_path(options, row, size))
    report = Report(options)
    try:
        for name in CHECKS:
            if name in options.rows:
                _check(name, report)
        names = [f"{row}@{size}" for row in ROWS if row in options.rows for size in options.sizes]
        if names:
            _checkpoint(options)
            _measure(names, argv, options, report)
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py bench dynamicrafter: {error}\n")
        return 1
    return 0 if all(report.has(name) for name in names) else 1


def _checkpoint(options: argparse.Namespace) -> Path:
    """The checkpoint's folder, written where it is missing."""
    options.work.mkdir(parents=True, exist_ok=True)
    if not options.tiny:
        return write_full_checkpoint(options.work / "dynamicrafter-random", default_device(), 0)
    folder: Path = options.work / "dynamicrafter-tiny"
    return folder if folder.is_dir() else write_tiny_dynamicrafter(folder, "1024")


def _setting(size: str, options: argparse.Namespace) -> Setting:
    return Setting(
        folder=_checkpoint(options),
        size=TINY_SIZE if options.tiny else SIZES[size],
        steps=options.steps,
        samples=options.samples,
        latent_steps=options.latent_steps,
        backend=options.backend,
        store=options.work / "engines",
        device=default_device(),
    )


def result_path(options: argparse.Namespace, row: str, size: str) -> Path:
    """The file of a row's prediction."""
    return options.work / f"{row}-{size}.safetensors"


def _child(row: Row, result: Path) -> int:
    """Prepares, says so, and answers each request with a line of figures."""
    row.ready()
    tell(READY)
    for line in sys.stdin:
        tell(json.dumps(row.answer(line.strip(), result)))
    return 0


def _measure(names: Sequence[str], argv: Sequence[str], options: argparse.Namespace, report: Report) -> None:
    command = [sys.executable, str(PACK / "run.py"), "--inside", "bench", "dynamicrafter", *argv, "--child"]
    for name in names:
        result_path(options, *name.split("@")).unlink(missing_ok=True)
    children = {
        name: subprocess.Popen([*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for name in names
    }
    deadline = time.monotonic() + 60 * options.minutes
    try:
        ready = [name for name, child in children.items() if _is_ready(name, child, deadline)]
        for _ in range(options.rounds):
            for name in ready:
                report.add_round(name, ask(name, children[name]))
        others = ["clip", *(["latents"] if options.latent_steps else [])]
        for what in others:
            for name in (each for each in ready if each.startswith("ours@")):
                report.add(name, ask(name, children[name], what))
    finally:
        for child in children.values():
            end(child)


def _is_ready(name: str, child: subprocess.Popen[str], deadline: float) -> bool:
    found = wait_ready(child, deadline)
    tell(f"{name}: {'ready' if found else 'left out: it failed or was not ready in time'}")
    return found


def _check(name: str, report: Report) -> None:
    from .dynamicrafter_checks import not_finite, parity

    if name == "parity":
        found = parity()
        report.check("parity", found, parity_max=max(found.values()))
    else:
        cases = not_finite()
        report.check("schedule", {"not_finite": cases}, nan_step_counts=len(cases))


class Report:
    """Figures on disk after each that comes: rows of earlier runs stay until they are measured again."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._folder: Path = options.out or (options.work / "results" if options.tiny else RESULTS)
        path = self._folder / "calls.json"
        self._document: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        self._origin = {"date": now(), "commit": describe_commit(options.commit), "tiny": options.tiny}
        self._rows: Rows = {}

    def has(self, name: str) -> bool:
        """Whether a row, by its name and size, was measured."""
        return bool(self._rows.get(name, {}).get("rounds_ms"))

    def add_round(self, name: str, figures: Mapping[str, Any]) -> None:
        """Takes one round's figures of a row."""
        rounds = [*self._rows.get(name, {}).get("rounds_ms", []), *([figures["step_ms"]] if figures else [])]
        self.add(name, {**figures, "rounds_ms": rounds})

    def add(self, name: str, figures: Mapping[str, Any]) -> None:
        """Takes figures of a row, compares what can be compared, and writes all."""
        self._rows[name] = {**self._rows.get(name, {}), **figures}
        self._compare()
        rows = {name: {**self._origin, **row} for name, row in self._rows.items()}
        self._write({"rows": {**self._document.get("rows", {}), **rows}}, flat_figures(self._rows))

    def check(self, name: str, found: Mapping[str, Any], **figures: float) -> None:
        """Takes the result of a check that needs no GPU."""
        tell(f"{name}: {json.dumps(found)}")
        self._write({name: {**self._origin, **found}}, figures)

    def _compare(self) -> None:
        from safetensors.torch import load_file

        for name, row in self._rows.items():
            way, _, size = name.partition("@")
            reference, own = (result_path(self._options, each, size) for each in (REFERENCE, way))
            if way != REFERENCE and "psnr_db" not in row and reference.is_file() and own.is_file():
                row |= likeness(load_file(reference)["result"], load_file(own)["result"])

    def _write(self, changes: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        device = default_device()
        origin = {"machine": describe_machine(device), "versions": describe_versions()}
        self._document |= {"benchmark": "dynamicrafter", **origin, **changes}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_text(self._folder / "calls.json", json.dumps(self._document, indent=1) + "\n")
        rounded = {name: float(f"{value:.4g}") for name, value in figures.items()}
        add_values(self._folder / "figures.json", rounded, DYNAMICRAFTER)


def flat_figures(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Figures by their names in `figures.DYNAMICRAFTER`: the mean of the rounds, the best of torch.compile's modes."""
    means = {name: sum(row["rounds_ms"]) / len(row["rounds_ms"]) for name, row in rows.items() if row.get("rounds_ms")}
    named = {"ours@1024": "ours_1024_ms", "fp32@1024": "fp32_1024_ms"}
    found = {named[name]: ms for name, ms in means.items() if name in named}
    compiled = [ms for name, ms in means.items() if name in ("compile@1024", "compile-max@1024")]
    found |= {"compile_1024_ms": min(compiled)} if compiled else {}
    clips = {size: rows.get(f"ours@{size}", {}).get("clip_s") for size in SIZES}
    return found | {f"clip_{size}_s": seconds for size, seconds in clips.items() if seconds is not None}

"""`run.py bench two-gpus`: one GPU against two equal ones of a host, in the same run and by turns.

Weights are random ones of the published sizes: speed does not depend on them. A step of SVD-XT, I2VGen-XL and Wan 2.1
14B with guidance is shared by branches, one of Wan without guidance by tokens, as is a Wan clip of four steps. Each row
is written when it is measured.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_file import write_text
from ..common.errors import I2VError, InputError
from ..common.pack_paths import PACK
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..runtime.devices.second_gpu import TWO, choose_second, visible_gpus
from .figures import SCALE, add_values
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .measured_child import tell
from .two_gpu_rows import CASES, Row, measure, peer_copy

RESULTS = Path(__file__).resolve().parent / "results" / "scale"


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench two-gpus", description=__doc__)
    add = top.add_argument
    add("--rows", default=",".join(CASES), metavar="NAMES", help="by commas (%(default)s)")
    add("--samples", type=int, default=5, metavar="N", help="steps of a block (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="blocks of one and of two GPUs, by turns (%(default)s)")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    add("--shapes", choices=("exact", "range"), default="exact", help="range: one engine for one branch and both")
    add("--tiny", action="store_true", help="tiny checkpoints on the CPU, to try the benchmark itself")
    add("--checkpoints", type=Path, default=PACK / ".cache" / "checkpoints", metavar="DIR", help="(%(default)s)")
    add("--store", type=Path, default=PACK / ".cache" / "engines", metavar="DIR", help="the engines (%(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="two_gpus.json and figures.json (%(default)s)")
    add("--commit", metavar="TEXT", help="what was measured, where this is no checkout")
    return top


def main(argv: Sequence[str]) -> int:
    """Measures and writes after each row; 0, 1 where a row failed or there are no two GPUs, 2 for an unknown row."""
    options = parser().parse_args(argv)
    names = options.rows.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.stderr.write(f"run.py bench two-gpus: expected rows among {', '.join(CASES)}, found {unknown[0]}.\n")
        return 2
    try:
        devices = _devices(options)
    except I2VError as error:
        sys.stderr.write(f"run.py bench two-gpus: {error}\n")
        return 1
    rows = [_row(name, devices, options) for name in names]
    return 0 if all("ratio" in row for row in rows) else 1


def _devices(options: argparse.Namespace) -> tuple[torch.device, torch.device]:
    """Both devices: a CPU twice for tiny checkpoints; raises InputError where there are no two equal GPUs."""
    if options.tiny:
        return torch.device("cpu"), torch.device("cpu")
    first = torch.device("cuda", 0)
    second = choose_second(TWO, first, visible_gpus())
    if second.device is None:
        raise InputError(second.reason or "Expected two GPUs.")
    return first, second.device


def _row(name: str, devices: tuple[torch.device, torch.device], options: argparse.Namespace) -> Row:
    """Measures a row and writes it; a row that fails says why."""
    tell(f"{name} ...")
    try:
        row = measure(CASES[name], devices, options)
    except (I2VError, OSError, RuntimeError) as error:
        row = {"error": f"{type(error).__name__}: {error}"}
    tell(f"{name}: {json.dumps({key: row[key] for key in ('ratio', 'best_ratio', 'error') if key in row})}")
    _write(name, row, devices, options)
    return row


def _write(name: str, row: Row, devices: tuple[torch.device, torch.device], options: argparse.Namespace) -> None:
    path: Path = options.out / "two_gpus.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept: dict[str, Any] = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else {}
    document = {
        "benchmark": "two-gpus",
        "date": now(),
        "commit": describe_commit(options.commit),
        "tiny": options.tiny,
        "machine": describe_machine(devices[0]),
        "versions": describe_versions(),
        "peer_copy": peer_copy(devices),
        "rows": {**kept, name: row},
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    if "ratio" in row and not options.tiny:
        add_values(options.out / "figures.json", {CASES[name].figure: round(row["ratio"], 3)}, SCALE)

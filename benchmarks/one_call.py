"""`run.py bench call`: one call of the network that runs at every step, for models whose checkpoint is too large for
a whole ladder. Its weights are random ones, drawn on the GPU.

Each way has a process of its own. All prepare side by side, compilers and all, and are then measured one at a time.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.device import default_device
from ..common.pack_paths import PACK
from ..pipeline.quality.similarity import latents_similarity
from .call_rows import (
    CARDS_GIB,
    HEIGHT,
    NUM_FRAMES,
    PRECISION,
    ROWS,
    SIZES,
    USUAL_SIZE,
    WIDTH,
    RandomWan,
    Row,
    Setting,
)
from .figures import WAN, write_figures
from .ladder.flops import count_tflop
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .ladder.measure import GIB, free_memory, gpu_state, sample_ms, step_figures
from .measured_child import READY, ask, end, tell, wait_ready

RESULTS = Path(__file__).resolve().parent / "results"
USUAL = ["eager", "compile", "inductor"]
"""Rows without a choice of one's own: the reference, its best rival, and the pack."""


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench call", description=__doc__)
    add = top.add_argument
    add("--rows", type=lambda text: text.split(","), default=USUAL, metavar="NAME,...", help=", ".join(ROWS))
    add("--samples", type=int, default=5, metavar="N", help="calls of each row in each round (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="times that all rows are measured, in turn (%(default)s)")
    add("--minutes", type=float, default=30.0, metavar="M", help="for preparing; rows that are not ready are left out")
    add("--layers", type=int, default=Setting.layers, metavar="N", help="of the transformer (%(default)s)")
    add("--size", default=f"{WIDTH}x{HEIGHT}", metavar="WxH", help="pixels (%(default)s)")
    add("--frames", type=int, default=NUM_FRAMES, metavar="N", help="of the clip (%(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="call.json goes here (%(default)s)")
    add("--figures", type=Path, metavar="FILE", help="the flat figures of a published size go into this file")
    add("--kernels", type=Path, metavar="DIR", help="each row's GPU kernels with their times go here, as NAME.txt")
    add("--commit", metavar="TEXT", help="what was measured, where this is no checkout")
    add("--child", help=argparse.SUPPRESS)
    add("--reference", type=Path, help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str]) -> int:
    """Measures the rows; 0 when each that was asked for gave its figures, else 1."""
    options = parser().parse_args(argv)
    width, height = map(int, options.size.split("x"))
    setting = Setting(width, height, options.frames, options.layers)
    if options.child:
        return _child(ROWS[options.child](setting, default_device()), options)
    with tempfile.TemporaryDirectory(prefix="i2v-call-") as folder:
        rows = _measured(argv, options, Path(folder) / "reference.safetensors")
    _write(options, setting, rows)
    return 0 if all("step_ms" in rows.get(name, {}) for name in options.rows) else 1


def _child(row: Row, options: argparse.Namespace) -> int:
    """Prepares, reports it, and measures at each request."""
    started = time.monotonic()
    call = row.prepare()
    figures: dict[str, Any] = {"title": row.title, "prepare_s": time.monotonic() - started, **row.noted}
    free_memory(row.device)
    tell(READY)
    for _ in sys.stdin:
        if row.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(row.device)
        figures |= step_figures(sample_ms(call, options.samples, row.device)) | gpu_state(row.device)
        if row.device.type == "cuda":
            figures["gpu_peak_gib"] = torch.cuda.max_memory_allocated(row.device) / GIB
        figures |= _against(options.reference, call().float().cpu())
        free_memory(row.device)
        tell(json.dumps(figures))
    if options.kernels is not None and row.device.type == "cuda":
        options.kernels.mkdir(parents=True, exist_ok=True)
        (options.kernels / f"{options.child}.txt").write_text(_kernels(call), "utf-8")
    return 0


def _kernels(call: Callable[[], torch.Tensor]) -> str:
    """A table of the GPU kernels of one call, the longest first."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as found:
        call()
        torch.cuda.synchronize()
    return found.key_averages().table(sort_by="cuda_time_total", row_limit=40, max_name_column_width=90)


def _against(path: Path, result: torch.Tensor) -> dict[str, float]:
    """Likeness to the first row that was measured, which is kept for the others."""
    from safetensors.torch import load_file, save_file

    if not path.exists():
        save_file({"result": result.contiguous()}, path)
        return {}
    similarity = latents_similarity(load_file(path)["result"], result)
    return {name.removeprefix("latents_"): value for name, value in similarity.items()}


def _measured(argv: Sequence[str], options: argparse.Namespace, reference: Path) -> dict[str, dict[str, Any]]:
    command = [sys.executable, str(PACK / "run.py"), "--inside", "bench", "call", *argv, "--reference", str(reference)]
    children = {
        name: subprocess.Popen(  # noqa: S603
            [*command, "--child", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name in options.rows
    }
    deadline = time.monotonic() + 60 * options.minutes
    try:
        ready = [name for name, child in children.items() if wait_ready(child, deadline)]
        rounds = [{name: ask(name, children[name]) for name in ready} for _ in range(options.rounds)]
        steps = {name: [found[name]["step_ms"] for found in rounds if "step_ms" in found[name]] for name in ready}
        return {name: {**rounds[-1][name], "rounds_ms": steps[name]} for name in ready}
    finally:
        for child in children.values():
            end(child)


def flat_figures(setting: Setting, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """The figures of a published size by their names in `figures.WAN`: the mean of the rounds; empty for another size.

    What a smaller card costs is the ratio to the engine with all weights held, in the same run.
    """
    size = SIZES.get((setting.width, setting.height, setting.num_frames))
    calls = {name: sum(row["rounds_ms"]) / len(row["rounds_ms"]) for name, row in rows.items() if row.get("rounds_ms")}
    if size is None or setting.layers != Setting.layers:
        return {}
    named = {"inductor": f"call_{size}_bf16_ms", "compile": f"compile_{size}_ms", "fp8": f"call_{size}_fp8_ms"}
    found = {named[name]: ms for name, ms in calls.items() if name in named}
    if size == USUAL_SIZE and "inductor" in calls:
        found |= {"peak_gib": rows["inductor"]["gpu_peak_gib"], "build_s": rows["inductor"]["build_s"]}
        small = {gib: calls[f"{gib}-gib"] for gib in CARDS_GIB if f"{gib}-gib" in calls}
        found |= {f"ratio_{gib}_gib": ms / calls["inductor"] for gib, ms in small.items()}
    return {name: value for name, value in found.items() if value is not None}


def _write(options: argparse.Namespace, setting: Setting, rows: dict[str, dict[str, Any]]) -> None:
    meta = RandomWan(torch.device("meta"), setting.layers)
    tflop = count_tflop(meta.load("core", PRECISION), meta.components["core"].spec, setting.sizes(meta))
    for figures in rows.values():
        if "step_ms" in figures:
            figures["tflop_per_s"] = 1000 * tflop / figures["step_ms"]
    device = default_device()
    report = {
        "benchmark": "call",
        "date": now(),
        "commit": describe_commit(options.commit),
        "model": f"Wan 2.1 I2V 14B, {setting.width}x{setting.height}, {setting.num_frames} frames, {PRECISION}, "
        f"no guidance, {setting.layers} layers, random weights",
        "machine": describe_machine(device),
        "versions": describe_versions(),
        "tflop": tflop,
        "rows": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    if options.figures is not None:
        write_figures(options.figures, flat_figures(setting, rows), WAN)
    text = json.dumps(report, indent=1)
    (options.out / "call.json").write_text(text + "\n", "utf-8")
    sys.stdout.write(text + "\n")

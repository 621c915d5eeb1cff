"""`run.py bench scratch`: GPU memory of each network beside its weights, in eager PyTorch at published sizes.

The figures are PyTorch's peak during the second call, above the memory held before; the budgets in `pipeline/models`
are made from them.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.out_of_memory import is_out_of_memory
from ..common.spec import EngineSpec
from ..engine_builder.backends.eager import EagerBackend
from ..engine_builder.graph.onnx_export import example_inputs
from ..pipeline.dummies.full_size import FULL_SIZES, write_full_checkpoint
from ..pipeline.models.base import VideoModel
from ..pipeline.models.registry import open_model
from .ladder.machine import describe_commit, describe_machine, describe_versions, now

RESULTS = Path(__file__).resolve().parent / "results" / "gpu" / "scratch.json"
MIB = 1 << 20
DENOISER_SIZES = {
    "i2vgen-xl-random": ((512, 512, 16, 2), (512, 512, 16, 1), (704, 1280, 16, 2), (1024, 1024, 16, 2)),
    "svd-xt-random": ((512, 512, 14, 2), (1024, 576, 25, 2), (1024, 576, 25, 1), (1024, 1024, 25, 2)),
    "dynamicrafter-random": ((512, 320, 16, 2), (1024, 576, 16, 2), (1024, 576, 16, 1)),
}
"""Width, height, frames and branches of the denoisers' calls."""
PICTURE_SIZES = ((512, 512, 1, 1), (512, 512, 8, 1), (1024, 576, 8, 1), (1024, 1024, 1, 1), (2048, 2048, 1, 1))
"""The same for networks that take pictures or latents of them; frames are decoded at once."""
Size = tuple[int, int, int, int]


def main(argv: Sequence[str]) -> int:
    """Measures, and writes the table; 1 where there is no GPU."""
    parser = argparse.ArgumentParser(prog="run.py bench scratch", description="What networks take beside weights.")
    parser.add_argument("--out", type=Path, default=RESULTS, help="the JSON file")
    parser.add_argument("--models", nargs="*", choices=FULL_SIZES, default=list(FULL_SIZES), help="which checkpoints")
    options = parser.parse_args(argv)
    if not torch.cuda.is_available():
        sys.stderr.write("no CUDA GPU was found\n")
        return 1
    device, rows = torch.device("cuda", 0), []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as work:
        for name in options.models:
            model = open_model(write_full_checkpoint(Path(work) / name, device, 0))
            for row in measure_model(model, DENOISER_SIZES[name], device):
                rows.append(row)
                sys.stdout.write(f"{json.dumps(row)}\n")
                sys.stdout.flush()
    facts = {"date": now(), "commit": describe_commit(None), "machine": describe_machine(device)}
    found = {"benchmark": "scratch", **facts, "versions": describe_versions(), "rows": rows}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    return 0


def measure_model(model: VideoModel, denoiser_sizes: Sequence[Size], device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each component at each of its sizes."""
    for component in model.components:
        for precision in ("fp16", "fp32") if component in model.denoisers else ("fp16",):
            for size in denoiser_sizes if component in model.denoisers else PICTURE_SIZES:
                yield measure(model, component, size, precision, device)


def measure(model: VideoModel, component: str, size: Size, precision: str, device: torch.device) -> dict[str, Any]:
    """Memory of one call, measured and estimated, in MiB."""
    sizes, network = sizes_of(size), model.components[component]
    own = {name: sizes.get(name, limits.opt) for name, limits in network.spec.limits.ranges.items()}
    spec = EngineSpec(network.spec, network.spec.limits.exact(own), precision)
    row: dict[str, Any] = {"family": model.family, "component": component, "precision": precision, **sizes}
    row["estimate_mib"] = round(model.scratch_bytes(component, {**sizes, **own}, precision) / MIB)
    runner = EagerBackend().load(None, spec, lambda: network.load(precision), device)
    runner.load()
    try:
        inputs = {name: x.to(device) for name, x in example_inputs(spec, {**sizes, **own}).items()}
        runner(inputs)
        held = _settled(device)
        started = time.perf_counter()
        runner(inputs)
        torch.cuda.synchronize(device)
        row["elapsed_s"] = round(time.perf_counter() - started, 4)
        row["peak_mib"] = round((torch.cuda.max_memory_allocated(device) - held) / MIB)
    except RuntimeError as error:
        row["error"] = "out of memory" if is_out_of_memory(error) else str(error).splitlines()[0]
    runner.unload()
    return row


def sizes_of(size: Size) -> dict[str, int]:
    """The named dimensions of a size."""
    width, height, frames, batch = size
    plane = {"latent_height": height // 8, "latent_width": width // 8}
    return {"batch": batch, "frames": frames, "chunk": frames, **plane}


def _settled(device: torch.device) -> int:
    """Bytes that PyTorch holds, after a reset of its peak."""
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)

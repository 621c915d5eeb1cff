"""`run.py bench four-steps`: Wan 2.2 A14B as models distilled from it run: four steps, guidance 1, picture to file.

Weights are random ones of the published sizes, in files as they are downloaded. Both experts and all other networks
are held on the GPU. In the end a new process loads the engine that is there, with its weights.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_file import write_text
from ..common.device import default_device
from ..common.errors import I2VError
from ..common.pack_paths import PACK
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..engine_builder.store.store import EngineStore
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.dummies.full_size import FullSize
from ..pipeline.models.checkpoints.file_digests import FRESH_S, TABLE
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipRequest, ClipSize
from ..runtime.clip_plan import Denoising
from ..runtime.clip_sizes import clip_sizes
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .clip_stages import build_report, checkpoint_at, picture, timed_clip
from .figures import WAN, write_figures
from .full_models import PUBLISHED
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .ladder.measure import GIB, free_memory, synchronize
from .measured_child import tell

RESULTS = Path(__file__).resolve().parent / "results" / "wan"
A14B = next(each for each in PUBLISHED if each.title == "Wan 2.2 I2V A14B")
FOLDER, TINY_FOLDER = "wan22-a14b-random", "wan22-a14b-tiny"
TINY_SIZE = ClipSize(64, 64, 9)
DENOISING = Denoising(0, 1.0, SamplerSettings(4, "euler", shift=5.0), late_guidance_scale=1.0)
PRECISIONS = ("bf16", "fp8")


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench four-steps", description=__doc__)
    add = top.add_argument
    add("--precisions", default=",".join(PRECISIONS), metavar="NAMES", help="by commas (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="clips of each precision (%(default)s)")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    add("--tiny", action="store_true", help="a tiny checkpoint and clip, to try the benchmark itself")
    add("--checkpoints", type=Path, default=PACK / ".cache" / "checkpoints", metavar="DIR", help="(%(default)s)")
    add("--store", type=Path, default=PACK / ".cache" / "engines", metavar="DIR", help="the engines (%(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="four-steps.json and figures.json (%(default)s)")
    add("--load", metavar="PRECISION", help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str]) -> int:
    """Measures, and writes after each precision; 0, or 1 after a sentence on the error."""
    options = parser().parse_args(argv)
    TABLE.keep_in(options.store / "digests.json")  # as ComfyUI's processes do
    try:
        if options.load:
            sys.stdout.write(json.dumps(_load(options)) + "\n")
            return 0
        started = time.monotonic()
        _checkpoint(options)
        tell(f"the checkpoint is there after {time.monotonic() - started:.1f} s")
        for precision in options.precisions.split(","):
            _write(precision, _measure(precision, options), options)
            _write(f"{precision}, loaded by a new process", _loaded(precision, argv), options)
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py bench four-steps: {error}\n")
        return 1
    return 0


Row = dict[str, Any]


def _measure(precision: str, options: argparse.Namespace) -> Row:
    """Seconds of the first clip with all builds, and of hot ones by stage; peak memory of the hot ones."""
    engines = _engines(precision, options)
    request = ClipRequest(picture(), "a boat drifts on a lake", "", *_size(options), 16)
    row: Row = {"clips": []}
    with tempfile.TemporaryDirectory(prefix="i2v-four-steps-") as folder:
        started = time.monotonic()
        row["first"] = timed_clip(engines, request, DENOISING, Path(folder) / "first.mp4")
        row["first_s"] = time.monotonic() - started
        tell(f"{precision}: first clip {row['first_s']:.1f} s, {row['first']}")
        if engines.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(engines.device)
        for number in range(options.rounds):
            row["clips"].append(timed_clip(engines, request, DENOISING, Path(folder) / f"{number}.mp4"))
            tell(f"{precision}: {sum(row['clips'][-1].values()):.3f} s, {row['clips'][-1]}")
    if engines.device.type == "cuda":
        row["gpu_peak_gib"] = torch.cuda.max_memory_allocated(engines.device) / GIB
    row |= {"seconds": statistics.median(sum(clip.values()) for clip in row["clips"]), "notes": engines.take_notes()}
    row["engines"] = {name: engines.describe(name) for name in engines.model.components}
    engines.unload()
    free_memory(engines.device)
    return row


def _load(options: argparse.Namespace) -> Row:
    """Seconds until the first denoiser's engine is ready, its weights on the device."""
    engines, started = _engines(options.load, options), time.monotonic()
    sizes = clip_sizes(engines.model, *_size(options), guided=False)
    engines.runner(engines.model.denoiser, sizes)
    synchronize(engines.device)
    loaded_s = time.monotonic() - started
    return {"load_s": loaded_s, "engine": engines.describe(engines.model.denoiser), "notes": engines.take_notes()}


def _loaded(precision: str, argv: Sequence[str]) -> Row:
    """What `_load` finds in a new process."""
    command = [sys.executable, str(PACK / "run.py"), "--inside", "bench", "four-steps", *argv, "--load", precision]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {"error": done.returncode}


def _engines(precision: str, options: argparse.Namespace) -> EngineSet:
    policy = EnginePolicy(options.backend, precision, shapes="exact")
    model = open_model(_folder(options))
    return EngineSet(model, EngineStore(options.store), policy, default_device(), report=build_report())


def _size(options: argparse.Namespace) -> ClipSize:
    return TINY_SIZE if options.tiny else A14B.size


def _checkpoint(options: argparse.Namespace) -> None:
    """Writes the checkpoint where it is not there."""
    full = FullSize(A14B.write_tiny, A14B.changes, "bf16")
    checkpoint_at(_folder(options), full, default_device(), tiny=options.tiny)
    time.sleep(FRESH_S)  # the digest of a file that has just changed is not kept


def _folder(options: argparse.Namespace) -> Path:
    return options.checkpoints / (TINY_FOLDER if options.tiny else FOLDER)


def _write(name: str, row: Mapping[str, Any], options: argparse.Namespace) -> None:
    """Adds a row to `four-steps.json`, and its figures to the flat ones where the size is the published one."""
    tell(f"{name}: {json.dumps(row)}")
    path: Path = options.out / "four-steps.json"
    rows = json.loads(path.read_text("utf-8"))["rows"] if path.is_file() else {}
    document = {
        "benchmark": "four-steps",
        "date": now(),
        "commit": describe_commit(None),
        "model": f"{A14B.title}, {_size(options).words}, 4 steps, guidance 1, random weights",
        "machine": describe_machine(default_device()),
        "versions": describe_versions(),
        "rows": {**rows, name: dict(row)},
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    figures = {f"four_steps_{name}_s": row["seconds"]} if "seconds" in row else {}
    if "load_s" in row and name.startswith(PRECISIONS[0]):
        figures["load_s"] = row["load_s"]
    if not options.tiny:
        write_figures(options.out / "figures.json", figures, WAN)

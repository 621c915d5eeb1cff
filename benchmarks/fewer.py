"""`run.py bench fewer`: seconds from picture to file under each preset, beside the exact clip in the same run.

Weights are random ones of the published sizes: speed does not depend on them, and quality is not judged here but by
`run.py evaluate`. The presets take turns, so that a card that slows down slows them all.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..common.atomic_file import write_text
from ..common.device import default_device
from ..common.errors import I2VError
from ..common.pack_paths import PACK
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..engine_builder.store.store import EngineStore
from ..pipeline.acceleration.presets import EXACT_NAME, PRESET_NAMES, preset_of
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.dummies.full_size import FULL_SIZES
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipRequest, ClipSize
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .clip_stages import build_report, checkpoint_at, picture, timed_clip
from .figures import write_figures
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .measured_child import tell

RESULTS = Path(__file__).resolve().parent / "results" / "fewer"


@dataclass(frozen=True)
class Case:
    """A family's clip at its published size; `prefix` begins the names of its flat figures."""

    checkpoint: str
    size: ClipSize
    steps: int
    guidance_scale: float
    prefix: str

    def settings(self, scheduler: str) -> Denoising:
        """Settings of the exact clip."""
        return Denoising(0, self.guidance_scale, SamplerSettings(self.steps, scheduler))


CASES = {
    "i2vgen": Case("i2vgen-xl-random", ClipSize(512, 512, 16), 50, 9.0, ""),
    "svd": Case("svd-xt-random", ClipSize(1024, 576, 25), 25, 3.0, "svd_"),
}
TINY_SIZE, TINY_STEPS = ClipSize(64, 64, 4), 24


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench fewer", description=__doc__)
    add = top.add_argument
    add("--models", default=",".join(CASES), metavar="NAMES", help="by commas (%(default)s)")
    add("--presets", default=",".join(PRESET_NAMES), metavar="NAMES", help="by commas (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="clips of each preset, in turn (%(default)s)")
    add("--minutes", type=float, default=30.0, metavar="M", help="no further round begins after these")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    add("--tiny", action="store_true", help="tiny checkpoints and clips, to try the benchmark itself")
    add("--checkpoints", type=Path, default=PACK / ".cache" / "checkpoints", metavar="DIR", help="(%(default)s)")
    add("--store", type=Path, default=PACK / ".cache" / "engines", metavar="DIR", help="the engines (%(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="fewer.json and figures.json (%(default)s)")
    return top


def main(argv: Sequence[str]) -> int:
    """Measures and writes after each model; 0, or 1 after a sentence on the error."""
    options, started = parser().parse_args(argv), time.monotonic()
    try:
        for name in options.models.split(","):
            rows = _measure(CASES[name], options, started)
            _write(name, rows, options)
    except KeyError as error:
        sys.stderr.write(f"run.py bench fewer: expected models among {', '.join(CASES)}, found {error}.\n")
        return 2
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py bench fewer: {error}\n")
        return 1
    return 0


Row = dict[str, Any]


def _measure(case: Case, options: argparse.Namespace, started: float) -> dict[str, Row]:
    """Rows of each preset: the seconds of its clips by stage, and its calls."""
    device, size = default_device(), TINY_SIZE if options.tiny else case.size
    model = open_model(_checkpoint(case, options, device))
    policy = EnginePolicy(options.backend, shapes="exact")
    engines = EngineSet(model, EngineStore(options.store), policy, device, report=build_report())
    denoising = case.settings(model.schedulers[0])
    if options.tiny:
        denoising = Case("", size, TINY_STEPS, case.guidance_scale, "").settings(model.schedulers[0])
    sets = {name: engines.with_preset(preset_of(name, model)) for name in options.presets.split(",")}
    request = ClipRequest(picture(), "a boat drifts on a lake", "", *size, 8)
    rows: dict[str, Row] = {name: _plan_row(each, request, denoising) for name, each in sets.items()}
    with tempfile.TemporaryDirectory(prefix="i2v-fewer-") as folder:
        for name, each in sets.items():
            tell(f"{case.checkpoint}: {name}, first clip ...")
            timed_clip(each, request, denoising, Path(folder) / "warm.mp4")  # builds, loads and captures
        for number in range(options.rounds):
            for name, each in sets.items():
                if number and time.monotonic() - started > 60 * options.minutes:
                    continue
                found = timed_clip(each, request, denoising, Path(folder) / f"{number}.mp4")
                rows[name]["clips"].append(found)
                tell(f"{case.checkpoint}: {name}, {sum(found.values()):.3f} s")
    for name, each in sets.items():
        rows[name] |= {"engine": each.describe(model.denoiser), "notes": each.take_notes()}
        rows[name]["seconds"] = statistics.median(sum(clip.values()) for clip in rows[name]["clips"])
    engines.unload()
    return rows


def _plan_row(engines: EngineSet, request: ClipRequest, denoising: Denoising) -> Row:
    sampling = plan_sampling(plan_clip(engines, request.size), denoising)
    asked = sampling.asked.steps * (2 if sampling.is_guided else 1)
    made = asked if sampling.calls is None else sampling.calls.branches
    return {"calls": made, "asked": asked, "line": sampling.calls_line, "clips": []}


def _checkpoint(case: Case, options: argparse.Namespace, device: torch.device) -> Path:
    name = case.checkpoint.replace("random", "tiny") if options.tiny else case.checkpoint
    return checkpoint_at(options.checkpoints / name, FULL_SIZES[case.checkpoint], device, tiny=options.tiny)


def _write(name: str, rows: Mapping[str, Row], options: argparse.Namespace) -> None:
    """Adds a model's rows to `fewer.json`, and the seconds to the flat figures."""
    path, prefix = options.out / "fewer.json", CASES[name].prefix
    kept = json.loads(path.read_text("utf-8")) if path.is_file() else {"models": {}}
    document = {
        "date": now(),
        "commit": describe_commit(None),
        "machine": describe_machine(default_device()),
        "versions": describe_versions(),
        "models": {**kept["models"], name: {"tiny": options.tiny, "rows": rows}},
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    seconds = {f"{prefix}{preset.replace(' ', '_')}_s": row["seconds"] for preset, row in rows.items()}
    write_figures(options.out / "figures.json", seconds)
    for preset, row in rows.items():
        tell(f"{name}: {preset}: {row['seconds']:.3f} s, {row['calls']} of {row['asked']} calls")
    if EXACT_NAME in rows:
        best = min(rows, key=lambda preset: rows[preset]["seconds"])
        tell(f"{name}: {best} is {rows[EXACT_NAME]['seconds'] / rows[best]['seconds']:.2f} times as fast as exact")

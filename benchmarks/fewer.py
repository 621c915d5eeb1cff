"""`run.py bench fewer`: seconds from picture to file under each preset, beside the exact clip in the same run.

Weights are random ones of the published sizes: speed does not depend on them, and quality is not judged here but by
`run.py evaluate`. All engines are prepared before any clip is timed; with --prepare that is all, and the next call
finds them. The presets take turns, so that a card that slows down slows them all; each clip is written down at once.
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

from ..common.atomic_file import write_text
from ..common.device import default_device
from ..common.errors import I2VError, InputError
from ..common.pack_paths import PACK
from ..engine_builder.backends.registry import AUTO, BACKENDS
from ..engine_builder.store.store import EngineStore
from ..pipeline.acceleration.presets import EXACT_NAME, PRESET_NAMES, preset_of
from ..pipeline.denoising.schedulers import SamplerSettings
from ..pipeline.dummies.full_size import FULL_SIZES, FullSize
from ..pipeline.models.base import VideoModel
from ..pipeline.models.checkpoints.file_digests import TABLE
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipRequest, ClipSize
from ..runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ..runtime.engines.engine_set import EngineSet
from ..runtime.engines.policy import EnginePolicy
from .clip_stages import build_report, checkpoint_at, picture, timed_clip
from .figures import WAN as WAN_FIGURES
from .figures import write_figures
from .full_models import PUBLISHED
from .ladder.machine import describe_commit, describe_machine, describe_versions, now
from .measured_child import tell

RESULTS = Path(__file__).resolve().parent / "results" / "fewer"
WAN = next(each for each in PUBLISHED if each.title == "Wan 2.1 I2V 14B")


@dataclass(frozen=True)
class Case:
    """A family's clip at its published size; `prefix` begins the names of its flat figures."""

    checkpoint: str
    full: FullSize
    size: ClipSize
    fps: int
    steps: int
    guidance_scale: float
    prefix: str
    tiny_size: ClipSize = ClipSize(64, 64, 4)

    def settings(self, model: VideoModel, steps: int) -> Denoising:
        """Settings of the exact clip by the model's first scheduler."""
        return Denoising(0, self.guidance_scale, SamplerSettings(steps, model.schedulers[0]))


I2VGEN, SVD = (FULL_SIZES[name] for name in ("i2vgen-xl-random", "svd-xt-random"))
CASES = {
    "i2vgen": Case("i2vgen-xl-random", I2VGEN, ClipSize(512, 512, 16), 8, 50, 9.0, ""),
    "svd": Case("svd-xt-random", SVD, ClipSize(1024, 576, 25), 7, 25, 3.0, "svd_"),
    "wan21": Case(
        "wan21-14b-random",
        FullSize(WAN.write_tiny, WAN.changes, "bf16"),
        WAN.size,
        fps=16,
        steps=40,
        guidance_scale=5.0,
        prefix="wan21_",
        tiny_size=ClipSize(64, 64, 5),
    ),
}
TINY_STEPS = 24
WARM_STEPS = 4
"""Steps of a clip that loads and captures what a preset calls: guided ones and, under a gate, one that is not."""
UNTRAINED = "Random weights of the published sizes, for no trained ones were there: quality is not judged here."
Row = dict[str, Any]


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench fewer", description=__doc__)
    add = top.add_argument
    add("--models", default="i2vgen,svd", metavar="NAMES", help=f"by commas, of {', '.join(CASES)} (%(default)s)")
    add("--presets", default=",".join(PRESET_NAMES), metavar="NAMES", help="by commas (%(default)s)")
    add("--rounds", type=int, default=2, metavar="N", help="clips of each preset, in turn (%(default)s)")
    add("--minutes", type=float, default=30.0, metavar="M", help="no further clip begins after these (%(default)s)")
    add("--prepare", action="store_true", help="builds the engines, and ends")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    add("--tiny", action="store_true", help="tiny checkpoints and clips, to try the benchmark itself")
    add("--checkpoints", type=Path, default=PACK / ".cache" / "checkpoints", metavar="DIR", help="(%(default)s)")
    add("--store", type=Path, default=PACK / ".cache" / "engines", metavar="DIR", help="the engines (%(default)s)")
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="fewer.json and figures.json (%(default)s)")
    add("--figures", type=Path, metavar="FILE", help="also puts SVD's exact clip into this file of Wan's figures")
    return top


def main(argv: Sequence[str]) -> int:
    """Measures and writes after each clip; 0, or 1 after a sentence on the error."""
    options, started = parser().parse_args(argv), time.monotonic()
    TABLE.keep_in(options.store / "digests.json")  # as ComfyUI's processes do
    names = options.models.split(",")
    unknown = [name for name in names if name not in CASES]
    if unknown:
        sys.stderr.write(f"run.py bench fewer: expected models among {', '.join(CASES)}, found {unknown[0]!r:.80}.\n")
        return 2
    try:
        for name in names:
            _measure(name, options, started + 60 * options.minutes)
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py bench fewer: {error}\n")
        return 1
    return 0


def _measure(name: str, options: argparse.Namespace, deadline: float) -> None:
    """Prepares a model's engines, and times clips of each preset in turn until the rounds or the time are over."""
    case = CASES[name]
    engines = _engines(case, options)
    size, steps = (case.tiny_size, TINY_STEPS) if options.tiny else (case.size, case.steps)
    request = ClipRequest(picture(), "a boat drifts on a lake", "", *size, case.fps)
    denoising = case.settings(engines.model, steps)
    sets = {preset: engines.with_preset(preset_of(preset, engines.model)) for preset in options.presets.split(",")}
    try:
        _prepare(name, sets, size)
        if options.prepare:
            return
        rows = {preset: _planned_row(each, size, denoising) for preset, each in sets.items()}
        with tempfile.TemporaryDirectory(prefix="i2v-fewer-") as folder:
            path = Path(folder) / "clip.mp4"
            warm = case.settings(engines.model, WARM_STEPS)
            for preset, each in sets.items():
                tell(f"{name}: {preset}: loading ...")
                timed_clip(each, request, warm, path)
                each.take_notes()
            for preset, each in list(sets.items()) * options.rounds:
                if time.monotonic() > deadline:
                    raise InputError(f"The time is over; {name} needs more --minutes for the rest.")
                _add_clip(rows[preset], each, timed_clip(each, request, denoising, path))
                _write(name, {preset: rows[preset]}, options)
    finally:
        engines.unload()
    _compare(name, rows)


def _engines(case: Case, options: argparse.Namespace) -> EngineSet:
    device = default_device()
    folder = case.checkpoint.replace("random", "tiny") if options.tiny else case.checkpoint
    model = open_model(checkpoint_at(options.checkpoints / folder, case.full, device, tiny=options.tiny))
    policy = EnginePolicy(options.backend, shapes="exact")
    return EngineSet(model, EngineStore(options.store), policy, device, report=build_report())


def _prepare(name: str, sets: Mapping[str, EngineSet], size: ClipSize) -> None:
    """Builds every engine that a clip of any of the presets calls, which the store keeps one by one."""
    started = time.monotonic()
    for engines in sets.values():
        for components, sizes in plan_clip(engines, size).engine_sizes:
            engines.prepare(sizes, components)
    tell(f"{name}: all engines are there after {time.monotonic() - started:.1f} s")
    for note in next(iter(sets.values())).take_notes():
        tell(f"{name}: {' '.join(note.split())}")


def _planned_row(engines: EngineSet, size: ClipSize, denoising: Denoising) -> Row:
    sampling = plan_sampling(plan_clip(engines, size), denoising)
    return {"calls": sampling.most_calls, "asked": sampling.asked_calls, "line": sampling.calls_line, "clips": []}


def _add_clip(row: Row, engines: EngineSet, laps: Mapping[str, float]) -> None:
    """Adds a clip's seconds by stage; the notes say the calls that it has made, where its data decided."""
    row["clips"].append(dict(laps))
    row["seconds"] = statistics.median(sum(clip.values()) for clip in row["clips"])
    row |= {"engine": engines.describe(engines.model.denoiser), "notes": engines.take_notes()}
    row |= {"date": now(), "commit": describe_commit(None), "gpu": describe_machine(engines.device)["gpu"]}


def _write(name: str, rows: Mapping[str, Row], options: argparse.Namespace) -> None:
    """Prints rows of a model and puts them into `fewer.json`, and the seconds of published sizes into the figures."""
    for preset, row in rows.items():
        tell(f"{name}: {preset}: {row['seconds']:.3f} s, {row['calls']} of {row['asked']} calls. {UNTRAINED}")
    path: Path = options.out / "fewer.json"
    models = json.loads(path.read_text("utf-8"))["models"] if path.is_file() else {}
    kept = models.get(name, {}).get("rows", {}) if models.get(name, {}).get("tiny") == options.tiny else {}
    document = {
        "date": now(),
        "commit": describe_commit(None),
        "machine": describe_machine(default_device()),
        "versions": describe_versions(),
        "models": {**models, name: {"tiny": options.tiny, "weights": UNTRAINED, "rows": {**kept, **rows}}},
    }
    write_text(path, json.dumps(document, indent=1) + "\n")
    if not options.tiny:
        write_figures(options.out / "figures.json", flat_figures(name, rows))
        if options.figures is not None and name == "svd" and EXACT_NAME in rows:
            write_figures(options.figures, {"svd_clip_s": rows[EXACT_NAME]["seconds"]}, WAN_FIGURES)


def flat_figures(name: str, rows: Mapping[str, Row]) -> dict[str, float]:
    """The seconds of a model's rows by the names of the flat figures."""
    return {f"{CASES[name].prefix}{preset.replace(' ', '_')}_s": row["seconds"] for preset, row in rows.items()}


def _compare(name: str, rows: Mapping[str, Row]) -> None:
    presets = [preset for preset in rows if preset != EXACT_NAME]
    if EXACT_NAME in rows and presets:
        best = min(presets, key=lambda preset: rows[preset]["seconds"])
        tell(f"{name}: {best} is {rows[EXACT_NAME]['seconds'] / rows[best]['seconds']:.2f} times as fast as exact")

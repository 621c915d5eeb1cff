"""`run.py evaluate`: presets against the exact clip, on the bundled model or on a checkpoint at hand.

The bundled model is judged on held-out clips of which the motion is known; 16 seeds are 64 clips. What is done is kept
below --out: the same command goes on where an earlier one ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.device import default_device
from ...common.errors import I2VError, InputError
from ...common.pack_paths import BUNDLED, PACK
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import AUTO, BACKENDS
from ...engine_builder.store.store import EngineStore
from ...pipeline.acceleration.presets import EXACT_NAME, PRESET_NAMES, preset_of
from ...pipeline.acceleration.quality import Quality, write_quality
from ...pipeline.models.base import VideoModel
from ...pipeline.models.registry import open_model
from ...runtime.engines.engine_set import EngineSet
from ...runtime.engines.policy import EnginePolicy
from ...runtime.engines.presets import parse_presets
from ..clip_stages import build_report
from ..figures import write_figures
from ..ladder.machine import describe_commit, describe_machine, describe_versions, now
from .clips import BUNDLED_GUIDANCE, JudgedClip, bundled_clips, picture_clips
from .learned import learned_figures, missing
from .measure import summary
from .progress import Tell
from .report import save_sheets, table_of, verdicts, write_report
from .run import LOSSLESS, Evaluation, Order, other_backend

STEPS = 50


def parser() -> argparse.ArgumentParser:
    """The judge's options."""
    top = argparse.ArgumentParser("run.py evaluate", description=__doc__)
    add = top.add_argument
    add("--model", type=Path, default=BUNDLED, metavar="DIR", help="a checkpoint's folder; the bundled one if none")
    add("--presets", default=",".join(PRESET_NAMES[1:]), metavar="NAMES", help="by commas (%(default)s)")
    add("--seeds", type=int, default=1, metavar="N", help="of each prompt; 16 for the whole count (%(default)s)")
    add("--steps", type=int, default=STEPS, metavar="N", help="of the exact clip (%(default)s)")
    add("--guidance", type=float, metavar="X", help="3 for the bundled model, else 9")
    add("--scheduler", metavar="NAME", help="of the exact clip; the model's first if none")
    add("--picture", type=Path, action="append", default=[], metavar="FILE", help="for another model; again for more")
    add("--prompt", action="append", default=[], metavar="TEXT", help="for another model; again for more")
    add("--size", default="512x512x16", metavar="WxHxF", help="of another model's clips (%(default)s)")
    add("--fps", type=int, default=16, metavar="N", help="of another model's clips (%(default)s)")
    add("--backend", choices=[AUTO, *BACKENDS], default=AUTO)
    add("--lossless", type=int, default=1, metavar="N", help="clips made by another build too (%(default)s)")
    add("--minutes", type=float, metavar="M", help="no clip begins that would not end in these")
    add("--clip", type=Path, metavar="DIR", help="a CLIP model of yours, for CLIPScore")
    add("--out", type=Path, default=PACK / "out" / "evaluation", metavar="DIR", help="everything (%(default)s)")
    add("--store", type=Path, default=PACK / ".cache" / "engines", metavar="DIR", help="the engines (%(default)s)")
    add("--figures", type=Path, metavar="FILE", help="also puts the presets' PSNR into this file of flat figures")
    add("--publish", action="store_true", help="makes the figures of the bundled model the presets' quality lines")
    return top


def main(argv: Sequence[str]) -> int:
    """Judges; 0 where every quality line is kept, 1 after a sentence on what is not."""
    options = parser().parse_args(argv)
    try:
        return _evaluate(options)
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py evaluate: {error}\n")
        return 1


def _evaluate(options: argparse.Namespace) -> int:
    model, tell = open_model(options.model), _Clock()
    is_bundled = options.model.resolve() == BUNDLED
    order = _order(options, model, is_bundled)
    engines = _engines(options, model, judged_backend(options.backend, default_device()), tell)
    other = _engines(options, model, other_backend(engines), tell)
    evaluation = Evaluation(options.out, engines, other, order)
    rows = evaluation.run(tell, options.minutes)
    summaries = {name: summary(found, rows[EXACT_NAME]) for name, found in rows.items()}
    frames = sum(clip.request.num_frames for clip in order.clips)
    notes = [*missing(options.clip, len(order.clips), frames), *_preset_notes(order, model)]
    learned = _learned(options, order, evaluation, rows)
    for variant, found in learned.items():
        summaries[variant] |= found
    document = _document(options, engines, order, summaries, rows)
    write_report(document, summaries, notes, options.out)
    sheets = save_sheets(evaluation, order.clips, rows, options.out)
    if options.figures is not None and is_bundled:
        write_figures(
            options.figures, {_figure(name): summaries[name]["psnr_db"] for name in order.presets if name in rows}
        )
    if options.publish:
        write_quality(model.family, _qualities(options, order, engines.model, summaries))
    lines = [table_of(summaries).markdown(), *verdicts(summaries), *notes, *map(str, sheets)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0 if all(line.endswith("keeps its line.") for line in verdicts(summaries)) else 1


def _order(options: argparse.Namespace, model: VideoModel, is_bundled: bool) -> Order:
    presets = tuple(name.strip() for name in options.presets.split(",") if name.strip())
    for name in presets:
        preset_of(name, model)
    guidance = options.guidance or (BUNDLED_GUIDANCE if is_bundled else 9.0)
    scheduler = options.scheduler or model.schedulers[0]
    clips = bundled_clips(options.seeds) if is_bundled else _own_clips(options)
    kept = tuple(name for name in presets if name != EXACT_NAME)
    return Order(clips, kept, options.steps, guidance, scheduler, options.lossless)


def _qualities(
    options: argparse.Namespace, order: Order, model: VideoModel, summaries: Mapping[str, Any]
) -> dict[str, Quality]:
    """The quality of each preset whose clips have a known motion; raises InputError for another model's."""
    if options.model.resolve() != BUNDLED:
        raise InputError("Quality lines are those of the bundled model: take --publish without --model.")
    return {
        name: Quality(
            "the bundled model",
            found["clips"],
            order.steps,
            round(found["psnr_db"], 2),
            round(found["worst_psnr_db"], 2),
            round(found["ssim"], 4),
            round(found["still_right_percent"], 1),
            tuple(preset_of(name, model).acceleration.words),
        )
        for name, found in summaries.items()
        if name in order.presets and "still_right_percent" in found
    }


def _learned(
    options: argparse.Namespace, order: Order, evaluation: Evaluation, rows: Mapping[str, Any]
) -> dict[str, dict[str, float]]:
    """The learned metrics of presets that have all clips."""
    whole = [name for name in order.presets if len(rows.get(name, ())) == len(order.clips)]
    return learned_figures(order.clips, evaluation.frames, whole, EXACT_NAME, options.clip)


def _own_clips(options: argparse.Namespace) -> list[JudgedClip]:
    sizes = parse_presets(options.size)
    if len(sizes) != 1:
        raise InputError(f"Expected one size such as 512x512x16, found {options.size!r:.80}.")
    return picture_clips(options.picture, options.prompt or [""], options.seeds, sizes[0], options.fps)


def judged_backend(asked: str, device: torch.device) -> str:
    """The backend of the judged clips: for `auto` on a CPU eager, where an engine's build takes as long as a clip."""
    return EagerBackend.name if asked == AUTO and device.type == "cpu" else asked


def _engines(options: argparse.Namespace, model: VideoModel, backend: str, tell: Tell) -> EngineSet:
    policy = EnginePolicy(backend, shapes="exact")
    return EngineSet(model, EngineStore(options.store), policy, default_device(), report=build_report(tell))


def _preset_notes(order: Order, model: VideoModel) -> list[str]:
    return [f"{name}: {note}" for name in order.presets for note in preset_of(name, model).notes]


def _document(
    options: argparse.Namespace, engines: EngineSet, order: Order, summaries: dict[str, Any], rows: dict[str, Any]
) -> dict[str, Any]:
    title = f"{engines.model.title}, {len(order.clips)} clips against {order.steps} exact steps by {order.scheduler}"
    return {
        "title": title,
        "date": now(),
        "commit": describe_commit(None),
        "model": options.model.name,
        "guidance_scale": order.guidance_scale,
        "other_build": LOSSLESS if order.lossless else None,
        "engine": engines.describe(engines.model.denoiser),
        "machine": describe_machine(engines.device),
        "versions": describe_versions(),
        "presets": {name: preset_of(name, engines.model).acceleration.words for name in order.presets},
        "summary": summaries,
        "rows": rows,
    }


def _figure(preset: str) -> str:
    return f"{preset.replace(' ', '_')}_psnr_db"


class _Clock:
    """Writes lines with the seconds since the start."""

    def __init__(self) -> None:
        self._started = time.monotonic()

    def __call__(self, line: str) -> None:
        sys.stdout.write(f"[{time.monotonic() - self._started:7.1f} s] {line}\n")
        sys.stdout.flush()

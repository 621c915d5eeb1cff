"""`run.py bench ladder`: the same clip in every way there is here, from diffusers in fp32 to the fastest engine.

One run, one seed, one prompt. Each way runs in a process of its own; the figures stand on disk after each.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...common.device import default_device
from ...common.errors import I2VError, InputError
from ...common.pack_paths import PACK
from ...pipeline.models.checkpoints.diffusers_folder import INDEX
from ...pipeline.models.registry import open_model
from .child import main as run_child
from .climb import Climb, Limits
from .document import Document
from .job import Job
from .machine import describe_commit, describe_machine, describe_versions, now
from .row import Row
from .subject import BUNDLED_NAME, PUBLISHED, TINY, Subject, choose_subject
from .table import markdown
from .variants import EAGER, REWRITES, STOCK, Variant, ladder, tasks

RESULTS = Path(__file__).resolve().parent.parent / "results"
WORK = PACK / ".cache" / "ladder"
COMPILE_LIMIT_S = 420.0
REWRITES_HELP = (
    "on AOTInductor. none: the engine as it is used; last: also of the network as it is published; all: and with "
    "the rewrites switched on one after the other (%(default)s)"
)
_SIZE = re.compile(r"(\d+)x(\d+)")


def parser() -> argparse.ArgumentParser:
    """The benchmark's options."""
    top = argparse.ArgumentParser("run.py bench ladder", description=__doc__)
    top.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    add = top.add_argument_group("what is measured").add_argument
    add(
        "--model",
        help=f"{', '.join(PUBLISHED)}, {BUNDLED_NAME}, {TINY} or a checkpoint's folder; the first on a GPU, else "
        f"{BUNDLED_NAME}",
    )
    add("--weights", metavar="random|DIR", help="for a published model: random ones of its size, or a folder")
    add("--precision", choices=("fp16", "bf16"), help="of a GPU's rows but row 0; what is usual for the model")
    add("--size", type=_size, metavar="WxH", help="pixels; what is usual for the model")
    add("--frames", type=int, metavar="N", help="what is usual for the model")
    add("--steps", type=int, metavar="N", help="what is usual for the model")
    add("--guidance", type=float, metavar="G", help="what is usual for the model")
    add("--seed", type=int, default=1, metavar="N")
    add("--prompt", metavar="TEXT", help="what is usual for the model")
    add("--chunk", type=int, metavar="N", help="frames decoded at once; what is usual for the model")
    add = top.add_argument_group("which rows").add_argument
    add("--rows", type=_names, default=[], metavar="NAME,...", help="these alone; --list names them")
    add("--list", action="store_true", help="say which rows there are here, and end")
    add("--rewrites", choices=REWRITES, default="last", help=REWRITES_HELP)
    add("--no-warm", action="store_true", help="leave the warm starts out, which take a process each")
    add("--after-clip", action="store_true", help="also frames between frames, and larger ones, by each engine row")
    add("--sweep", action="store_true", help="how cost grows with frames, size and steps, in place of the rows")
    add("--sweep-row", default=EAGER, metavar="NAME", help="what the sweep runs (%(default)s)")
    add = top.add_argument_group("how long and how often").add_argument
    add("--minutes", type=float, default=math.inf, metavar="M", help="rows that no longer fit are left out, with why")
    add("--compile-limit", type=float, default=COMPILE_LIMIT_S, metavar="S", help="for a row of torch.compile")
    add("--step-samples", type=int, metavar="N", help="denoiser calls of the main row (200 on a GPU, else 20)")
    add = top.add_argument_group("where").add_argument
    add("--out", type=Path, default=RESULTS, metavar="DIR", help="ladder.json, .md and .png go here (%(default)s)")
    add("--work", type=Path, default=WORK, metavar="DIR", help="engines, caches, checkpoint, row 0's clip")
    add("--resume", type=Path, metavar="FILE", help="go on from the JSON of an earlier run of the same job")
    add("--commit", metavar="TEXT", help="what was measured, where this is no checkout")
    return top


def main(argv: Sequence[str]) -> int:
    """Climbs the ladder; 0 when every row that was begun could be finished, else 1."""
    options = parser().parse_args(argv)
    if options.child is not None:
        return run_child(options.child)
    try:
        return _climb(options)
    except I2VError as error:
        sys.stderr.write(f"run.py bench ladder: {error}\n")
        return 1


def _climb(options: argparse.Namespace) -> int:
    began_at = time.time()
    device = default_device()
    work = options.work.expanduser().resolve()
    work.mkdir(parents=True, exist_ok=True)
    subject = choose_subject(options.model, options.weights, device, work)
    job = _job(options, subject, str(device), work)
    document = Document(
        job, describe_machine(device), describe_versions(), describe_commit(options.commit), now(), _told(options)
    )
    if options.resume is not None:
        document.adopt(_read(options.resume))
    samples = options.step_samples or (200 if device.type == "cuda" else 20)
    limits = Limits(began_at, options.minutes * 60, options.compile_limit)
    out = options.out.expanduser().resolve()
    climb = Climb(document, limits, samples, subject.is_full_size, out, after_clip=options.after_clip)
    if subject.is_random and not (subject.folder / INDEX).is_file():
        climb.prepare_checkpoint(Variant("checkpoint", "", STOCK, "fp16", 0))
    precision = (options.precision or subject.usual.precision) if device.type == "cuda" else "fp32"
    variants, missing = ladder(open_model(subject.folder), device, options.rewrites, precision)
    if options.list:
        sys.stdout.write(_listing(variants, missing))
        return 0
    return _run(options, climb, variants, missing)


def _run(options: argparse.Namespace, climb: Climb, variants: list[Variant], missing: list[Row]) -> int:
    document = climb.document
    climb.tell(document.job.describes)
    if options.sweep:
        climb.sweep(_named(variants, options.sweep_row))
        return 0
    rows = [row for variant in variants for row in variant.rows] + missing
    unknown = sorted(set(options.rows) - {row.name for row in rows})
    if unknown:
        raise InputError(f"The rows here are {', '.join(row.name for row in rows)}, found {', '.join(unknown)}.")
    found = tasks(variants, options.rows, document.rows)
    todo = [task for task in found if not (task.warm and options.no_warm)]
    for row in rows:
        document.rows.setdefault(row.name, row)
    document.in_order([row.name for row in rows])
    for task in todo:
        climb.run(task)
    climb.report()
    sys.stdout.write("\n" + markdown(document))
    failed = [row for task in todo for row in task.variant.rows if document.rows[row.name].trace]
    return 1 if failed else 0


def _job(options: argparse.Namespace, subject: Subject, device: str, work: Path) -> Job:
    usual = subject.usual

    def chosen(given: Any, otherwise: Any) -> Any:
        return otherwise if given is None else given

    width, height = chosen(options.size, usual.size)
    return Job(
        model=subject.name,
        folder=str(subject.folder),
        width=width,
        height=height,
        num_frames=chosen(options.frames, usual.num_frames),
        fps=usual.fps,
        steps=chosen(options.steps, usual.steps),
        guidance_scale=chosen(options.guidance, usual.guidance_scale),
        seed=options.seed,
        prompt=chosen(options.prompt, usual.prompt),
        chunk=chosen(options.chunk, usual.chunk),
        device=device,
        work=str(work),
    )


def _told(options: argparse.Namespace) -> dict[str, object]:
    """The options that were given, without the places on this machine."""
    given = {name: value for name, value in vars(options).items() if name not in ("out", "work", "resume", "child")}
    return {name: str(value) if value == math.inf else value for name, value in given.items() if value is not None}


def _listing(variants: Sequence[Variant], missing: Sequence[Row]) -> str:
    there = [f"{row.name:<28} {row.title}\n" for variant in variants for row in variant.rows]
    return "".join(there + [f"{row.name:<28} {row.title}: {row.reason}\n" for row in missing])


def _named(variants: Sequence[Variant], name: str) -> Variant:
    found = next((variant for variant in variants if variant.name == name and variant.way != STOCK), None)
    if found is None:
        names = ", ".join(variant.name for variant in variants if variant.way != STOCK)
        raise InputError(f"The sweep runs one of {names}, found {name}.")
    return found


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise InputError(f"Expected the JSON of an earlier run at {path}: {error.strerror or error}.") from error


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _size(text: str) -> tuple[int, int]:
    found = _SIZE.fullmatch(text)
    if found is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 512x512, found {text!r}")
    return int(found[1]), int(found[2])

"""`run.py demo`: a picture becomes a video on this machine, with its time and place shown to the user."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..common.errors import I2VError
from ..common.pack_paths import PACK, PICTURE
from ..runtime.demo_model import DemoModel, demo_model
from .demo_runs import DemoJob, DemoRun, run_demo

CACHE = PACK / ".cache" / "demo"


def parser() -> argparse.ArgumentParser:
    """The demo's options."""
    top = argparse.ArgumentParser(
        "run.py demo",
        description="Turn a picture into a video on this machine, without ComfyUI. The first run builds engines for "
        "this host, later ones find them.",
    )
    top.add_argument("--out", type=Path, default=PACK / "out", metavar="DIR", help="where the files go (%(default)s)")
    top.add_argument("--image", type=Path, default=PICTURE, metavar="FILE", help="the picture (%(default)s)")
    top.add_argument("--prompt", metavar="TEXT", help="what should happen; the default depends on the model")
    top.add_argument("--four", action="store_true", help="four prompts on the one picture, on one contact sheet")
    top.add_argument("--tiny", action="store_true", help="random weights instead of the bundled model: quick noise")
    top.add_argument("--seed", type=int, default=1, metavar="N", help="another seed gives another clip (%(default)s)")
    return top


def main(argv: Sequence[str]) -> int:
    """Runs the demo and returns the exit status: 0, or 1 after one sentence on the error."""
    options = parser().parse_args(argv)
    try:
        model = demo_model(CACHE, tiny=options.tiny)
        job = _job(options, model)
        run = run_demo(job)
        sheet = _contact_sheet(job)
    except (I2VError, OSError) as error:
        sys.stderr.write(f"run.py demo: {error}\n")
        return 1
    sys.stdout.write(_report(job, run, sheet))
    return 0


def _job(options: argparse.Namespace, model: DemoModel) -> DemoJob:
    out = options.out.expanduser().resolve()
    out.mkdir(parents=True, exist_ok=True)
    prompts = model.prompts if options.four else model.prompts[:1] if options.prompt is None else (options.prompt,)
    names = [f"demo_{number}.mp4" for number in range(1, len(prompts) + 1)] if options.four else ["demo.mp4"]
    clips = tuple((prompt, out / name) for prompt, name in zip(prompts, names, strict=True))
    return DemoJob(model, options.image, options.seed, clips, CACHE)


def _contact_sheet(job: DemoJob) -> Path:
    """One clip's frames on a sheet, or a row of them for each of several clips."""
    from ..pipeline.media.contact_sheet import captioned, contact_sheet
    from ..pipeline.media.reader import read_video

    path = job.clips[0][1].with_name("demo_contact_sheet.png")
    count, columns = (6, 6) if len(job.clips) > 1 else (8, 4)
    rows = [(prompt, contact_sheet(read_video(video), count=count, columns=columns)) for prompt, video in job.clips]
    captioned(rows).save(path)
    return path


def _report(job: DemoJob, run: DemoRun, sheet: Path) -> str:
    rows = [*run.times.items(), ("total", sum(run.times.values()))]
    table = "\n".join(f"  {stage:<16}{elapsed_s:>8.2f} s" for stage, elapsed_s in rows)
    notes = "".join(f"  {note}\n" for note in run.notes)
    videos = "".join(f"{prompt}: {video}\n" for prompt, video in job.clips)
    return f"\nModel: {job.model.describes}\n\n{table}\n\n{notes}\n{videos}Contact sheet: {sheet}\n"

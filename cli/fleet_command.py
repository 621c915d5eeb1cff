"""`run.py fleet`: a workflow for a folder of pictures over the GPUs of many machines."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stdout
from pathlib import Path

from ..remote.batch.records import RECORDS
from ..remote.batch.workflow import UsageError, Workflow
from ..remote.comfyui.messages import printable
from ..remote.fleet.clip_job import ClipJob
from ..remote.fleet.crew import Crew, LocalCrew
from ..remote.fleet.limits import Limits
from ..remote.fleet.maker import WorkerSpec
from ..remote.fleet.prebuild import prebuild_folder, prebuild_jobs
from ..remote.fleet.ray_crew import RayCrew, RayOptions
from ..remote.fleet.report import FleetReport
from ..remote.fleet.run import run_fleet
from ..remote.fleet.shared_folder import save_list, save_workflow
from ..remote.fleet.status import FleetStatus, fleet_status
from .child import run_child
from .environment import ROOT
from .extras import complete_fleet
from .queue_command import FAILED, add_job_options, find_pictures, make_jobs, make_workflow, status_of

PREBUILD, STATUS, RAY = "prebuild", "status", "ray"
LOCAL = "local"

DESCRIPTION = f"""\
Run a workflow in API format for each picture of a folder, on every GPU of a Ray cluster: each has a ComfyUI of its
own, of the one that COMFYUI_DIR names or comfy-cli's default. Without GPUs in the cluster a worker takes
CPU cores.

  run.py fleet WORKFLOW --image FOLDER --out DIR            make the clips
  run.py fleet {PREBUILD} WORKFLOW --image FOLDER --out DIR   build the engines once for each kind of GPU
  run.py fleet {STATUS} --out DIR                            how many wait, run, are done, failed, lost
  run.py fleet {RAY} start --head --port 6379                Ray's own command, such as to start a cluster or join it

The same command goes on where an earlier one ended, however it ended, from any machine that has the folder of --out:
what has a record there is not made again. Pictures, --out, --base and the pack lie in the same place on every machine.

Without --address a Ray of this machine alone is started; --address {LOCAL} takes no Ray at all."""


def main(argv: Sequence[str]) -> int:
    """Runs the fleet; 0 if all is done, 1 if something failed, 2 for a wrong command line, 130 after Ctrl-C."""
    return status_of("run.py fleet", lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    if list(argv[:1]) == [STATUS]:
        return show_status(status_parser().parse_args(argv[1:]))
    if list(argv[:1]) == [RAY]:
        return run_ray(argv[1:])
    is_prebuild = list(argv[:1]) == [PREBUILD]
    return run(parser().parse_args(argv[1:] if is_prebuild else argv), is_prebuild)


def run_ray(words: Sequence[str]) -> int:
    """Runs Ray's own command, installed if need be; its status."""
    complete_fleet()
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    return run_child([sys.executable, "-m", "ray.scripts.scripts", *words])


def parser() -> argparse.ArgumentParser:
    """The options."""
    raw = argparse.RawDescriptionHelpFormatter
    top = argparse.ArgumentParser("run.py fleet", description=DESCRIPTION, formatter_class=raw, allow_abbrev=False)
    add_job_options(top)
    add_worker_options(top)
    top.add_argument("--json", action="store_true", help="one line of JSON for each clip")
    return top


def add_worker_options(top: argparse.ArgumentParser) -> None:
    """The options that say what makes the clips, and where."""
    top.add_argument("--address", metavar="ADDRESS", help=f"a Ray cluster, auto for this machine's, or {LOCAL}")
    top.add_argument("--workers", type=positive, metavar="N", help="at most so many workers")
    top.add_argument("--gpus-each", type=positive, default=1, metavar="N", help="GPUs of a worker (%(default)s)")
    top.add_argument(
        "--cpus-each", type=positive, default=2, metavar="N", help="CPU cores of a worker without a GPU (%(default)s)"
    )
    top.add_argument("--base", type=Path, metavar="DIR", help="ComfyUI's base directory, if not its own folder")
    top.add_argument(
        "--comfy-arg",
        action="append",
        default=[],
        metavar="ARGUMENT",
        help="for ComfyUI's main.py, such as --comfy-arg=--cpu (repeatable)",
    )
    top.add_argument("--clip-s", type=float, default=3600.0, metavar="SECONDS", help="the longest clip (%(default)g)")
    top.add_argument(
        "--maker", choices=("comfyui", "stand-in"), default="comfyui", help="stand-in: no clips, to try a cluster"
    )


def positive(text: str) -> int:
    """A number from 1 on."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, found {text}")
    return number


def run(options: argparse.Namespace, is_prebuild: bool) -> int:
    """Makes the clips, or the engines."""
    paths = find_pictures(options.image, options.out)
    workflow = make_workflow(lambda _: None, options)
    out = options.out.absolute()
    jobs = [ClipJob.of(job) for job in make_jobs(workflow, paths, options.workflow.stem)]
    out.mkdir(parents=True, exist_ok=True)
    save_workflow(out, workflow)
    if not is_prebuild:
        save_list(out, jobs)  # before the cluster is there, so that `status` knows of them
    folder, results = prebuild_folder(out) if is_prebuild else out, sys.stdout
    with redirect_stdout(sys.stderr), closing(open_crew(options, folder, workflow)) as crew:  # Ray prints its own lines
        if is_prebuild:
            jobs = prebuild_jobs(out, workflow, jobs[0], crew.slots())
        report = FleetReport(len(jobs), folder, sys.stderr, results, options.json)
        run_fleet(crew, folder, jobs, report, Limits(workers=options.workers))
    return FAILED if report.failed else 0


def open_crew(options: argparse.Namespace, out: Path, workflow: Workflow) -> Crew:
    """The workers that the options ask for; raises EnvironmentSetupError or InputError where Ray cannot be had."""
    spec = WorkerSpec(
        str(out),
        options.maker,
        str(options.base.absolute()) if options.base else None,
        tuple(options.comfy_arg),
        options.clip_s,
        extra_data=workflow.extra_data,
    )
    if options.address == LOCAL:
        return LocalCrew(spec, options.workers or 1)
    complete_fleet()
    return RayCrew(spec, ROOT, RayOptions(options.address, options.gpus_each, options.cpus_each))


def status_parser() -> argparse.ArgumentParser:
    """The options of `fleet status`."""
    top = argparse.ArgumentParser(f"run.py fleet {STATUS}", description="How far a batch is.", allow_abbrev=False)
    top.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder of the batch")
    top.add_argument("--json", action="store_true", help="the counts, and the reasons by key, as JSON")
    return top


def show_status(options: argparse.Namespace) -> int:
    """Writes the counts, and a line for each job that failed or is lost."""
    if not (options.out / RECORDS).is_dir():
        raise UsageError(f"Expected a folder that a fleet has worked in at {options.out}, found no {RECORDS} there.")
    status = fleet_status(options.out)
    if options.json:
        shown = {**status.counts(), "reasons": status.failed, "workers": status.running, "lost_by": status.lost}
        sys.stdout.write(json.dumps(shown) + "\n")
    else:
        sys.stdout.write(printable(status_text(status)))
    return 0


def status_text(status: FleetStatus) -> str:
    """The counts, and a line for each job that runs, failed or is lost."""
    lines = [", ".join(f"{count} {name}" for name, count in status.counts().items())]
    lines += [f"running: {status.stems[key]} on {worker}" for key, worker in status.running.items()]
    lines += [f"lost: {status.stems[key]}, with {worker}" for key, worker in status.lost.items()]
    lines += [f"failed: {status.stems[key]}: {reason}" for key, reason in status.failed.items()]
    return "\n".join(lines) + "\n"

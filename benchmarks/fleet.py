"""`run.py bench fleet`: what a fleet adds to its clips, what 10,000 jobs cost, and how soon the service answers.

The clips are stand-ins of a known length, so that what is left of the time is the fleet's own. With `--real N`, N clips
of the bundled model are made by one ComfyUI and then by two, each on its own GPU, and the rates are compared.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..common.atomic_file import write_text
from ..common.errors import BackendUnavailableError
from ..common.workflow_names import QUICK_START, api_workflow
from ..remote.batch.job import Job
from ..remote.batch.records import RECORDS
from ..remote.batch.workflow import Place, Workflow, find_picture, read_workflow, set_inputs
from ..remote.fleet.clip_job import ClipJob, Outcome
from ..remote.fleet.dispatch import Dispatcher
from ..remote.fleet.limits import Limits
from ..remote.fleet.maker import WorkerSpec
from ..remote.fleet.ray_crew import RayCrew, RayOptions
from ..remote.fleet.run import remaining
from ..remote.fleet.shared_folder import save_list, save_workflow
from ..remote.fleet.status import fleet_status
from .figures import SCALE, write_figures
from .ladder.machine import describe_commit, now
from .service_requests import ask_service

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "scale"
STAND_IN = Workflow({"1": {"class_type": "LoadImage", "inputs": {"image": "x"}}}, Place("1", "image"))
CLIP_S, CLIPS, WORKERS = 0.2, 200, 2
JOBS, FIRST_JOBS = 10_000, 1_000
MIB = 1 << 20


def parser() -> argparse.ArgumentParser:
    """The options."""
    top = argparse.ArgumentParser("run.py bench fleet", description=__doc__, allow_abbrev=False)
    top.add_argument("--only", action="append", choices=("overhead", "jobs", "service"), help="not all (repeatable)")
    top.add_argument("--jobs", type=int, default=JOBS, metavar="N", help="how many jobs are resumed (%(default)s)")
    top.add_argument("--real", type=int, metavar="N", help="so many clips of the bundled model, on two GPUs")
    top.add_argument("--base", type=Path, metavar="DIR", help="ComfyUI's base directory for --real")
    top.add_argument("--comfy-arg", action="append", default=[], metavar="ARGUMENT", help="for ComfyUI's main.py")
    top.add_argument("--out", type=Path, default=RESULTS, metavar="DIR", help="where the results go (%(default)s)")
    return top


def main(argv: Sequence[str]) -> int:
    """Measures, and writes `fleet.json` and the figures."""
    options = parser().parse_args(argv)
    path = options.out / "fleet.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.real:
            found["real"] = measure_real(folder, options)
        else:
            parts = {
                "overhead": lambda: measure_overhead(folder / "overhead"),
                "jobs": lambda: measure_jobs(folder / "jobs", options.jobs),
                "service": lambda: ask_service(folder / "service"),
            }
            for part in options.only or parts:
                found[part] = {
                    **parts[part](),
                    "at": now(),
                    "commit": describe_commit(None),
                    "load": os.getloadavg()[0],
                }
                sys.stdout.write(f"{part}: {json.dumps(found[part])}\n")
    write_text(path, json.dumps(found, indent=1) + "\n")
    figures = {"fleet_overhead_ms": found.get("overhead", {}).get("overhead_ms")}
    figures |= {"fleet_ratio": found.get("real", {}).get("ratio")}
    write_figures(options.out / "figures.json", {key: each for key, each in figures.items() if each is not None}, SCALE)
    return 0


def measure_overhead(folder: Path) -> dict[str, Any]:
    """Milliseconds of a worker's time a clip beside the clip itself, from its start to the next one's."""
    jobs = stand_ins(folder, CLIPS, takes_s=CLIP_S)
    with closing(ray_crew(folder / "out", WORKERS)) as crew:
        ends = made(crew, folder / "out", jobs, WORKERS)
    clips = len(ends) - WORKERS
    each_s = (ends[-1] - ends[WORKERS - 1]) * WORKERS / clips
    return {"clips": clips, "workers": WORKERS, "clip_s": CLIP_S, "overhead_ms": round((each_s - CLIP_S) * 1000, 1)}


def measure_jobs(folder: Path, count: int) -> dict[str, Any]:
    """Seconds to make and to resume so many jobs of no length, the largest record, and the driver's memory."""
    jobs = stand_ins(folder, count)
    out = folder / "out"
    with closing(ray_crew(out, WORKERS)) as crew:
        memory = {"before": resident_mib()}
        started = time.monotonic()
        made(crew, out, jobs[:FIRST_JOBS], WORKERS)
        memory["after_1000"] = resident_mib()
        made(crew, out, jobs[FIRST_JOBS:], WORKERS)
        memory["after_all"] = resident_mib()
        made_s = time.monotonic() - started
    started = time.monotonic()
    again = stand_in_jobs(sorted((folder / "in").iterdir()))  # their digests too, as the command does
    listed_s = time.monotonic() - started
    left = remaining(out, again)
    resumed_s = time.monotonic() - started
    started = time.monotonic()
    status = fleet_status(out).counts()
    return {
        "jobs": count,
        "made_s": round(made_s, 1),
        "resumed_s": round(resumed_s, 2),
        "of_that_digests_s": round(listed_s, 2),
        "status_s": round(time.monotonic() - started, 2),
        "left": len(left),
        "status": status,
        "largest_record_bytes": max(path.stat().st_size for path in (out / RECORDS).glob("*.json")),
        "driver_mib": memory,
    }


def measure_real(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Clips a second of one ComfyUI and of two, once each has made its first, and the ratio."""
    graph, _ = read_workflow(api_workflow(QUICK_START))
    pictures = [ROOT / "workflows" / "pictures" / "lake.png"]
    rates = {}
    for workers in (1, 2):
        out = folder / f"by {workers}"
        crew = ray_crew(out, workers, options)
        with closing(crew):
            if len(crew.slots()) < workers:
                raise BackendUnavailableError(f"Expected {workers} GPUs, found {len(crew.slots())}.")
            jobs = []
            for seed in range(options.real + workers):
                workflow = Workflow(set_inputs(graph, [f"5.seed={seed}"], lambda _: None), find_picture(graph))
                out.mkdir(exist_ok=True)
                save_workflow(out, workflow)
                digest = sha256(pictures[0].read_bytes()).hexdigest()
                jobs.append(ClipJob.of(Job(tuple(pictures), digest, workflow.digest, f"clip{seed}")))
            ends = made(crew, out, jobs, workers)
        rates[workers] = (len(ends) - workers) / (ends[-1] - ends[workers - 1])
    return {
        "clips": options.real,
        "one_clips_per_s": round(rates[1], 3),
        "two_clips_per_s": round(rates[2], 3),
        "ratio": round(rates[2] / rates[1], 3),
        "at": now(),
        "commit": describe_commit(None),
    }


def ray_crew(out: Path, workers: int, real: argparse.Namespace | None = None) -> RayCrew:
    """Workers of a Ray of this machine: on its GPUs for real clips, else so many of no cores in particular."""
    if real is not None:
        spec = WorkerSpec(str(out), base=str(real.base) if real.base else None, arguments=tuple(real.comfy_arg))
        return RayCrew(spec, ROOT, RayOptions())
    return RayCrew(WorkerSpec(str(out), "stand-in"), ROOT, RayOptions(cpus_each=1))


def made(crew: RayCrew, out: Path, jobs: Sequence[ClipJob], workers: int) -> list[float]:
    """Makes the jobs, and returns when each was done; raises RuntimeError where one was not."""
    ends: list[float] = []

    def tell(job: ClipJob, outcome: Outcome) -> None:
        if outcome.verdict != "done":
            raise RuntimeError(f"{job.file_stem} should be done, but {outcome.verdict}: {outcome.error}")
        ends.append(time.monotonic())

    save_list(out, jobs)
    dispatcher = Dispatcher(crew, out, tell, lambda text: None, Limits(workers=workers))
    for job in jobs:
        dispatcher.add(job)
    while not dispatcher.is_idle:
        dispatcher.step()
    return ends


def stand_ins(folder: Path, count: int, **wish: float) -> list[ClipJob]:
    """Jobs of so many pictures that are made here."""
    (folder / "in").mkdir(parents=True)
    for number in range(count):
        (folder / "in" / f"p{number:05d}.png").write_text(json.dumps({"number": number, **wish}), "utf-8")
    return stand_in_jobs(sorted((folder / "in").iterdir()))


def stand_in_jobs(paths: Sequence[Path]) -> list[ClipJob]:
    """A job for each picture."""
    digest = STAND_IN.digest
    return [ClipJob.of(Job((path,), sha256(path.read_bytes()).hexdigest(), digest, path.stem)) for path in paths]


def resident_mib() -> float:
    """Memory of this process."""
    import psutil

    return round(psutil.Process().memory_info().rss / MIB, 1)

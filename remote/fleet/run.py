"""One run of a fleet over a list of jobs: what is done is left alone, what is not is made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..batch.records import Records
from .attempt import sweep
from .clip_job import ClipJob
from .crew import Crew
from .dispatch import Dispatcher
from .limits import Limits
from .report import FleetReport


def remaining(out: Path, jobs: Sequence[ClipJob]) -> list[ClipJob]:
    """The jobs that are not done. What is left of those whose files are gone or changed is removed."""
    records, found = Records(out), []
    committed = set(records.keys())
    for job in jobs:
        if job.key in committed and records.finished(job.key) is not None:
            continue
        if job.key in committed:
            records.forget(job.key)
        found.append(job)
    return found


def run_fleet(
    crew: Crew, out: Path, jobs: Sequence[ClipJob], report: FleetReport, limits: Limits | None = None
) -> None:
    """Makes the jobs that are not done, and reports each.

    Raises FleetError where no worker can make clips, and StorageError where the folder cannot be written to.
    """
    sweep(out)
    todo = remaining(out, jobs)
    report.skip(len(jobs) - len(todo))
    dispatcher = Dispatcher(crew, out, report.tell, report.note, limits)
    for job in todo:
        dispatcher.add(job)
    while not dispatcher.is_idle:
        dispatcher.step()

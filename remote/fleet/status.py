"""How far the jobs of a folder are, by what lies in it: no cluster is asked, and any machine can look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..batch.records import DONE, OPEN, Records
from .attempt import seen_tries
from .shared_folder import read_lists


@dataclass(frozen=True)
class FleetStatus:
    """Keys of jobs by their state; `failed` with each one's reason, `running` and `lost` with the worker.

    A job is lost while its worker is gone and no other has it: the next run makes it.
    """

    waiting: tuple[str, ...]
    running: dict[str, str]
    done: tuple[str, ...]
    failed: dict[str, str]
    lost: dict[str, str]
    stems: dict[str, str]

    def counts(self) -> dict[str, int]:
        """How many jobs are in each state."""
        return {name: len(getattr(self, name)) for name in ("waiting", "running", "done", "failed", "lost")}


def fleet_status(out: Path) -> FleetStatus:
    """The states of all jobs that runs in the folder were about."""
    records, stems = Records(out), read_lists(out)
    done = tuple(key for key in records.keys(DONE) if key in stems)
    left = stems.keys() - set(done)
    tries = [each for each in seen_tries(out) if each.key in left]
    running = {each.key: each.worker for each in tries if not each.is_lost}
    open_records = {key: records.find(key) for key in records.keys(OPEN) if key in left - running.keys()}
    failed = {
        key: record.error or ""
        for key, record in open_records.items()
        if record is not None and record.state == "failed"
    }
    lost = {each.key: each.worker for each in tries if each.is_lost and each.key not in running.keys() | failed.keys()}
    waiting = tuple(key for key in stems if key in left - running.keys() - failed.keys() - lost.keys())
    return FleetStatus(waiting, running, done, failed, lost, stems)

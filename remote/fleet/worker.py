"""A worker of a fleet: job in, outcome out, and the files published in between. It knows no scheduler."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from ...common.atomic_file import link_first
from ...common.errors import I2VError
from ..batch.job import MadeFile
from ..batch.records import Record, Records
from .attempt import Attempt
from .clip_job import ClipJob, Outcome
from .comfy_maker import ComfyMaker
from .maker import BrokenWorkerError, CrashedError, Maker, WorkerSpec
from .stand_in import StandInMaker


class Worker:
    """Makes one clip at a time, and never raises: whatever happens is an outcome."""

    def __init__(self, spec: WorkerSpec, name: str = "") -> None:
        self._out = Path(spec.out)
        self._records = Records(self._out)
        self._maker: Maker = ComfyMaker(spec) if spec.maker == "comfyui" else StandInMaker()
        self.name = name or f"{platform.node()}/{os.getpid()}"

    def make(self, job: ClipJob) -> Outcome:
        """Makes the job's clip, unless somebody has, and publishes its files and its commit."""
        try:
            found = self._finished(job)
            return found or self._try(job)
        except BrokenWorkerError as error:
            return Outcome("broken", self.name, str(error))
        except CrashedError as error:
            return Outcome("crashed", self.name, str(error))
        except (I2VError, OSError) as error:
            return self._finished(job) or Outcome("failed", self.name, str(error))
        except Exception as error:
            return Outcome("failed", self.name, f"{type(error).__name__}: {error}")

    def make_text(self, text: str) -> str:
        """The same, in JSON."""
        return self.make(ClipJob.from_text(text)).as_text()

    def close(self) -> None:
        """Ends what makes the clips."""
        self._maker.close()

    def _try(self, job: ClipJob) -> Outcome:
        started = time.monotonic()
        with Attempt(self._out, job.key, self.name, self._maker.interrupt) as attempt:
            try:
                made = self._maker.make(job, attempt.folder)
            except I2VError as error:
                if attempt.is_cancelled and not isinstance(error, BrokenWorkerError):
                    return Outcome("cancelled", self.name, "it was cancelled")
                raise
            elapsed_s = round(time.monotonic() - started, 3)
            files, is_first = publish(self._records, job, made, self.name, elapsed_s)
        if not is_first:
            return self._finished(job) or Outcome(
                "failed", self.name, "its files were removed as soon as they were made"
            )
        return Outcome("done", self.name, None, files, elapsed_s)

    def _finished(self, job: ClipJob) -> Outcome | None:
        record = self._records.finished(job.key)
        if record is None:
            return None
        return Outcome("done", record.worker or "", None, record.files, record.elapsed_s, was_there=True)


def publish(
    records: Records, job: ClipJob, made: Sequence[Path], worker: str, elapsed_s: float
) -> tuple[tuple[MadeFile, ...], bool]:
    """Gives files their names and the job its commit; what a quicker try has published stays.

    The files come first: whoever finds files without a commit, left by a try that was killed in between, commits them.
    Returns the files, and whether this was the first commit.
    """
    files = []
    for number, path in enumerate(made, start=1):
        count = f"-{number}" if number > 1 else ""
        target = records.folder / f"{job.file_stem}{count}{path.suffix}"
        link_first(path, target)
        files.append(MadeFile(target.name, target.stat().st_size))
    pictures = (job.picture,) if job.picture else ()
    record = Record(
        "done", "", job.picture_digest, job.workflow_digest, pictures, tuple(files), None, worker, elapsed_s
    )
    return record.files, records.commit(job.key, record)

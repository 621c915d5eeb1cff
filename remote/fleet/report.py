"""What a fleet says while it works: a line for each clip, or a line of JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TextIO

from ..batch.records import shortened
from ..comfyui.messages import printable
from .clip_job import ClipJob, Outcome


class FleetReport:
    """Counts the outcomes of `total` jobs; notes go to `screen`, outcomes to `results`."""

    def __init__(self, total: int, out: Path, screen: TextIO, results: TextIO, in_json: bool) -> None:
        self._total, self._out = total, out
        self._screen, self._results, self._in_json = screen, results, in_json
        self.skipped = self.done = self.failed = 0

    def note(self, text: str) -> None:
        """A sentence on the fleet as a whole."""
        self._screen.write(printable(text) + "\n")
        self._screen.flush()

    def skip(self, count: int) -> None:
        """So many jobs were done before."""
        self.skipped = count
        if count:
            self.note(f"{count} of {self._total} clips are there.")

    def tell(self, job: ClipJob, outcome: Outcome) -> None:
        """A job has ended."""
        is_done = outcome.verdict == "done"
        self.done, self.failed = self.done + is_done, self.failed + (not is_done)
        files = [str(self._out / file.name) for file in outcome.files]
        if self._in_json:
            row = {"status": "done" if is_done else "error", "picture": job.picture, "files": files}
            row |= {"error": outcome.error, "elapsed_s": outcome.elapsed_s, "worker": outcome.worker, "key": job.key}
            line = json.dumps(row)
        else:
            told = ", ".join(files) if is_done else shortened(outcome.error or outcome.verdict, 2000)
            took = f" in {outcome.elapsed_s:.1f} s" if outcome.elapsed_s is not None else ""
            count = self.skipped + self.done + self.failed
            verdict = "done" if is_done else "error"
            line = (
                f"[{count}/{self._total}] {job.file_stem}: {verdict}{took} on {outcome.worker or 'no worker'}: {told}"
            )
        self._results.write(printable(line) + "\n")
        self._results.flush()

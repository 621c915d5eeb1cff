"""Progress of a queue: a bar on a terminal, plain lines elsewhere, and a line for each result."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

from ...common.atomic_file import atomic_file
from ..comfyui.messages import printable
from .job import Job

BAR_CHARS = 24
REDRAW_S = 0.1
SUFFIXES = {"image/jpeg": ".jpg", "image/png": ".png", "image/webp": ".webp"}

Verdict = Literal["done", "skipped", "error", "interrupted"]


@dataclass(frozen=True)
class JobResult:
    """Result of a job: `done`, `skipped` since an earlier run has done it, or not done, with the reason."""

    job: Job
    verdict: Verdict
    prompt_id: str
    files: tuple[Path, ...] = ()
    error: str | None = None
    elapsed_s: float | None = None

    @property
    def is_done(self) -> bool:
        """Whether the files are there."""
        return self.verdict in ("done", "skipped")

    def as_json(self) -> dict[str, Any]:
        """For a line of JSON."""
        return {
            "status": self.verdict,
            "pictures": [str(path) for path in self.job.pictures],
            "files": [str(path) for path in self.files],
            "error": self.error,
            "elapsed_s": self.elapsed_s,
            "prompt_id": self.prompt_id,
            "key": self.job.key,
        }

    def as_text(self) -> str:
        """For people."""
        took = "" if self.elapsed_s is None else f" in {self.elapsed_s:.1f} s"
        told = self.error if self.error else ", ".join(map(str, self.files)) or "no files"
        return printable(f"{self.job.label}: {self.verdict}{took}: {told}")


class Report:
    """Follows a queue of `total` jobs: progress to `screen`, results to `results`, previews into `previews`."""

    def __init__(self, total: int, screen: TextIO, results: TextIO, in_json: bool, previews: Path | None) -> None:
        self._total = total
        self._screen, self._results = screen, results
        self._in_json = in_json
        self._previews = previews
        self._live = screen.isatty()
        self._ended = 0
        self._stage = ""
        self._drawn_at = 0.0
        self._num_previews: dict[str, int] = {}

    def note(self, text: str) -> None:
        """A sentence on the queue as a whole."""
        self._line(text)

    def stage(self, job: Job, stage: str) -> None:
        """Shows the node that the job is at, or a node's line on itself."""
        if stage == self._stage:
            return
        self._stage = stage
        if self._live:
            self._draw(job, 0.0, 0.0)
        else:
            self._line(f"[{self._ended + 1}/{self._total}] {job.label}: {stage}")

    def detail(self, job: Job, text: str) -> None:
        """Shows a node's line on itself, on a terminal only, for the line changes with every step."""
        if self._live:
            self._stage = text.splitlines()[0] if text else ""
            self.progress(job, 0.0, 0.0)

    def progress(self, job: Job, done: float, total: float) -> None:
        """Shows the progress of the stage."""
        if self._live and (done >= total or time.monotonic() - self._drawn_at >= REDRAW_S):
            self._draw(job, done, total)

    def preview(self, job: Job, image: bytes, media_type: str) -> None:
        """Keeps a preview, if that was asked for, in a folder of its job."""
        if self._previews is None:
            return
        folder = self._previews / job.file_stem
        folder.mkdir(parents=True, exist_ok=True)
        number = self._num_previews[job.key] = self._num_previews.get(job.key, 0) + 1
        with atomic_file(folder / f"{number:04d}{SUFFIXES.get(media_type, '.bin')}") as temporary:
            temporary.write_bytes(image)

    def result(self, result: JobResult) -> None:
        """A job has ended."""
        self._ended += 1
        self._stage = ""
        self._wipe()
        self._results.write(json.dumps(result.as_json()) if self._in_json else result.as_text())
        self._results.write("\n")
        self._results.flush()

    def close(self) -> None:
        """Leaves the terminal tidy."""
        self._wipe()

    def _line(self, text: str) -> None:
        self._wipe()
        self._screen.write(printable(text) + "\n")
        self._screen.flush()

    def _draw(self, job: Job, done: float, total: float) -> None:
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        bar = ("#" * round(BAR_CHARS * share)).ljust(BAR_CHARS, "-")
        steps = f" {done:g}/{total:g}" if total > 0 else ""
        text = f"[{self._ended + 1}/{self._total}] {bar}{steps} {self._stage}  {job.label}"
        width = shutil.get_terminal_size().columns - 1
        self._screen.write(f"\r{text[:width].ljust(width)}")
        self._screen.flush()
        self._drawn_at = time.monotonic()

    def _wipe(self) -> None:
        if self._live and self._drawn_at:
            self._screen.write("\r" + " " * (shutil.get_terminal_size().columns - 1) + "\r")
            self._screen.flush()

"""The ladder's loop: one process a task, the most important first, and the report after each."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ...common.atomic_file import write_text
from ...common.errors import I2VError
from .document import Document
from .order import Order
from .plot import save_plot
from .process import run_order
from .row import INCOMPLETE, MEASURED, MISSING, Row, read_row
from .sweep import SWEEP_FILE, read_points
from .sweep_plot import save_sweep_plot
from .table import line, markdown
from .variants import NOT_YET, Task, Variant

OTHER_SAMPLES = 30
"""Core calls sampled of rows beside the headline."""
REPORT_S = 5.0
"""Kept back for the last report."""


@dataclass(frozen=True)
class Limits:
    """Seconds: for all, counted from `began_at` (`time.time()`), and for one run of torch.compile."""

    began_at: float
    total_s: float
    compile_s: float

    @property
    def left_s(self) -> float:
        """Seconds left for tasks."""
        return self.began_at + self.total_s - REPORT_S - time.time()


class Climb:
    """Runs tasks and keeps the document on disk up to date."""

    def __init__(
        self, document: Document, limits: Limits, samples: int, full_size: bool, out: Path, *, after_clip: bool = False
    ) -> None:
        self.document = document
        self._limits = limits
        self._samples = samples
        self._full_size, self._after_clip = full_size, after_clip
        self._out = out
        self._work = document.job.work_folder

    def prepare_checkpoint(self, variant: Variant) -> None:
        """Has the random checkpoint written, by a process that then gives the GPU back."""
        self.tell("writing a checkpoint of the published size with random weights")
        reason = self._run(variant, "checkpoint", self._limits.left_s)
        if reason:
            raise I2VError(f"The random checkpoint could not be written: {reason}")

    def run(self, task: Task) -> None:
        """Measures one task, or records the reason why not."""
        left_s = self._limits.left_s
        needed_s = task.about_s * (0.5 if self._full_size else 0.0)
        if task.warm and self._row(task.variant.name).state != MEASURED:
            return
        if left_s < max(needed_s, 1.0):
            reason = f"It was left out: it takes about {task.about_s:.0f} s, and {max(left_s, 0):.0f} s were left."
            self._leave(task, reason)
            return
        self.tell(f"{task.describes} ...")
        self._clear(task)
        limit_s = min(left_s, self._limits.compile_s) if task.variant.compile_mode else left_s
        try:
            reason = self._run(task.variant, "warm" if task.warm else "row", limit_s)
        except KeyboardInterrupt:  # also a request to end
            self._take(task, "It was interrupted.")
            raise
        self._take(task, reason)

    def sweep(self, variant: Variant) -> None:
        """Measures the growth of cost, with one way."""
        self.tell(f"sweep of {variant.name} ...")
        path = self._work / "rows" / SWEEP_FILE
        path.unlink(missing_ok=True)
        reason = self._run(variant, "sweep", self._limits.left_s)
        self.document.sweep = read_points(path)
        if reason:
            self.document.sweep.append({"axis": "sweep", "label": "ended early", "reason": reason})
        self.report()

    def report(self) -> None:
        """Writes JSON, Markdown and pictures; a picture that cannot be drawn does not lose the figures."""
        text = self.document.to_json()
        for path in (self._work / "ladder.json", self._out / "ladder.json"):
            write_text(path, text)
        write_text(self._out / "ladder.md", markdown(self.document))
        try:
            save_plot(self.document, self._out / "ladder.png")
            if self.document.sweep:
                save_sweep_plot(self.document, self._out / "sweep.png")
        except Exception as error:  # any error of drawing
            self.tell(f"no picture: {error}")

    def tell(self, text: str) -> None:
        """Prints a line of progress."""
        sys.stdout.write(f"[{time.time() - self._limits.began_at:6.1f} s] {text}\n")
        sys.stdout.flush()

    def _run(self, variant: Variant, kind: str, timeout_s: float) -> str:
        samples = self._samples if variant.headline else min(self._samples, OTHER_SAMPLES)
        order = Order(
            kind,
            self.document.job,
            variant,
            self._work / "rows",
            samples,
            time.time(),
            self._limits.began_at,
            self._after_clip,
        )
        name = f"{variant.name}.{kind}"
        path = self._work / "orders" / f"{name}.json"
        write_text(path, order.to_json())
        timeout = None if timeout_s == float("inf") else timeout_s
        return run_order(path, self._work / "logs" / f"{name}.log", timeout, _caches(self._work, variant))

    def _take(self, task: Task, reason: str) -> None:
        """Reports the rows that the task's process has left, with the reason where the process ended early."""
        if task.warm:
            self._merge_warm(task.variant, reason)
        else:
            for row in task.variant.rows:
                self._put(_ended(read_row(self._work / "rows" / f"{row.name}.json") or row, reason))
        self.report()
        for row in task.variant.rows:
            self.tell(line(self.document, self._row(row.name)))

    def _clear(self, task: Task) -> None:
        """Removes an earlier run's rows, and the caches that torch.compile would use instead of compiling."""
        for name in _files(task):
            (self._work / "rows" / name).unlink(missing_ok=True)
        if task.variant.compile_mode and not task.warm:
            shutil.rmtree(_cache_folder(self._work, task.variant), ignore_errors=True)

    def _row(self, name: str) -> Row:
        return self.document.rows[name]

    def _put(self, row: Row) -> None:
        self.document.rows[row.name] = row

    def _leave(self, task: Task, reason: str) -> None:
        """Records the reason why a task was not done, where an earlier run left no figures."""
        self.tell(f"{task.describes}: {reason}")
        for row in task.variant.rows:
            kept = self._row(row.name)
            if task.warm and row.name == task.variant.name:
                self._put(kept.adding({}, (f"Warm start: {reason}",)))
            elif not task.warm and not kept.figures:
                self._put(replace(kept, state=MISSING, reason=reason))
        self.report()

    def _merge_warm(self, variant: Variant, reason: str) -> None:
        found = read_row(self._work / "rows" / f"{variant.name}.warm.json")
        row = self._row(variant.name)
        if found is not None and found.state == MEASURED:
            self._put(row.adding(found.figures, found.notes))
        else:
            told = found.reason if found is not None and found.reason != NOT_YET else reason
            self._put(row.adding({}, (f"Warm start: {told}",)))


def _files(task: Task) -> list[str]:
    """The files that the task's process writes."""
    return [f"{task.variant.name}.warm.json"] if task.warm else [f"{row.name}.json" for row in task.variant.rows]


def _ended(row: Row, reason: str) -> Row:
    """A row whose process has ended; the process's own end is the reason where the row gives none."""
    if row.state == MEASURED or row.reason != NOT_YET:
        return row
    return replace(row, state=INCOMPLETE if row.figures else MISSING, reason=reason or "Its process gave no figures.")


def _caches(work: Path, variant: Variant) -> dict[str, str]:
    """Separate caches for each way of compiling, so that a cold figure is cold."""
    folder = _cache_folder(work, variant)
    return {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"), "TRITON_CACHE_DIR": str(folder / "triton")}


def _cache_folder(work: Path, variant: Variant) -> Path:
    return work / "cache" / (variant.name if variant.compile_mode else variant.backend)

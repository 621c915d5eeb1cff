"""Several builds at a time, each in a child process of its own, heard and cancelled from one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait

from ..engine_builder.backends.base import Report
from ..engine_builder.worker import POLL_S, BuildProcess

Task = Callable[[BuildProcess, Report], None]
"""Builds one engine in the process that it is given."""


class _CancelledError(Exception):
    """Ends the builds of other threads once one has failed or the user has interrupted."""


def build_in_parallel(tasks: Sequence[Task], workers: int, report: Report) -> None:
    """Runs the tasks, in their order, `workers` at a time.

    `report` hears the whole job's fraction, from the calling thread alone, and may raise to cancel: every
    child has then ended before the exception goes on. The first error of a task does the same.
    """
    waiting, progress, stop = deque(enumerate(tasks)), [("start", 0.0)] * len(tasks), threading.Event()

    def tell(number: int) -> Report:
        def heard(stage: str, done: float) -> None:
            if stop.is_set():
                raise _CancelledError
            progress[number] = (stage, done)

        return heard

    def work() -> None:
        with BuildProcess() as process:
            while not stop.is_set():
                try:
                    number, task = waiting.popleft()
                except IndexError:
                    return
                task(process, tell(number))
                progress[number] = ("done", 1.0)

    with ThreadPoolExecutor(workers) as pool:
        try:
            running = {pool.submit(work) for _ in range(min(workers, len(tasks)))}
            while running:
                finished, running = wait(running, POLL_S, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                report(*_overall(progress))
        finally:
            stop.set()


def _overall(progress: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The stages under way, and the mean of what is done."""
    stages = [stage for stage, done in progress if 0.0 < done < 1.0]
    return ", ".join(stages) or progress[0][0], sum(done for _, done in progress) / len(progress)

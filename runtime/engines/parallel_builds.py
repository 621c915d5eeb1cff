"""Several builds at a time, each in a child process of its own, reported and cancelled from one thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from queue import Empty, Queue

from ...engine_builder.backends.base import Report
from ...engine_builder.build.build_process import POLL_S, BuildProcess

Task = Callable[[BuildProcess, Report], None]
"""Builds one engine in the process that it is given."""


class CancelledError(Exception):
    """Ends the builds of other threads once one has failed or the user has interrupted; tasks let it through."""


def build_in_parallel(tasks: Sequence[Task], workers: int, report: Report) -> None:
    """Runs the tasks, in their order, `workers` at a time.

    `report` is called with the whole job's fraction, in the calling thread alone, and may raise to cancel: every
    child has then ended before the exception goes on. The first error of a task has the same effect.
    """
    waiting, progress, stop = deque(enumerate(tasks)), [("start", 0.0)] * len(tasks), threading.Event()

    def tell(number: int) -> Report:
        def heard(stage: str, done: float) -> None:
            if stop.is_set():
                raise CancelledError
            progress[number] = (stage, done)

        return heard

    def build() -> None:
        with BuildProcess() as process:
            while not stop.is_set():
                try:
                    number, task = waiting.popleft()
                except IndexError:
                    return
                task(process, tell(number))
                progress[number] = ("done", 1.0)

    _watch([build] * min(workers, len(tasks)), stop, lambda: report(*_overall(progress)))


def _watch(works: Sequence[Callable[[], None]], stop: threading.Event, look: Callable[[], None]) -> None:
    """Runs each task in a thread, and polls them; any error sets `stop` and waits for the others."""
    ended: Queue[BaseException | None] = Queue()

    def run(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    # No pool's threads, for which a server that ends would wait; the children then end by themselves.
    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    try:
        for thread in threads:
            thread.start()
        running = len(threads)
        while running:
            with suppress(Empty):
                error = ended.get(timeout=POLL_S)
                running -= 1
                if error is not None:
                    raise error
            look()
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _overall(progress: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """The stages under way, and the mean of the fractions done."""
    stages = [stage for stage, done in progress if 0.0 < done < 1.0]
    return ", ".join(stages) or progress[0][0], sum(done for _, done in progress) / len(progress)

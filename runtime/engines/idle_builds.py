"""Engines that clips went without, built while the host has nothing else to do."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from typing import Protocol

from ...common.errors import EngineError, I2VError
from ...engine_builder.backends.base import Report
from ...engine_builder.build.build import build_engine, builds_at_once, needed_device_bytes
from ...engine_builder.build.build_process import BuildProcess
from ...engine_builder.build.compile import BuildRequest
from ...engine_builder.store.store import EngineStore
from .failed_builds import FAILED, build_name
from .parallel_builds import CancelledError, Task, build_in_parallel

log = logging.getLogger(__name__)

CALM_S = 3.0
"""Seconds without work on the host before a build begins."""
POLL_S = 0.2


class Host(Protocol):
    """Interface of the host that runs clips, for the builds."""

    def is_on(self) -> bool:
        """Whether the user lets engines be built while there is nothing to run."""
        ...

    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits, and the user lets engines be built meanwhile; asked often."""
        ...

    def waiting(self) -> int:
        """Number of prompts that run or wait."""
        ...

    def free_device(self, needed_bytes: int) -> None:
        """Frees that many bytes of the device if possible, from a thread that does not own the device."""
        ...


class _BusyError(Exception):
    """Ends the builds because the host has something to do."""


@dataclass(frozen=True)
class _Wanted:
    request: BuildRequest
    store: EngineStore


@dataclass
class IdleBuilds:
    """Builds wanted engines in its own thread; work of the host cancels the builds at once, and they resume later."""

    host: Host
    calm_s: float = CALM_S
    generation: int = 0
    """Number of builds that have ended, well or not: a change makes runners without an engine look again."""
    _wanted: dict[str, _Wanted] = field(default_factory=dict)
    _stage: str = ""
    _thread: threading.Thread | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def want(self, request: BuildRequest, store: EngineStore) -> None:
        """Queues the engine to be built when there is time; ignores one that could not be built before."""
        if FAILED.knows(request):
            return
        with self._lock:
            self._wanted.setdefault(build_name(request), _Wanted(request, store))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="i2v-idle-builds", daemon=True)
                self._thread.start()

    def is_on(self) -> bool:
        """Whether wanted engines are built at all, which the user may switch off."""
        return self.host.is_on()

    def waiting(self) -> int:
        """Number of prompts that the host runs or that wait."""
        return self.host.waiting()

    @property
    def line(self) -> str:
        """Line on the engine that is being built and on those that wait; empty when none is wanted."""
        waiting, stage = len(self._wanted), self._stage
        if not waiting:
            return ""
        engines = "engine" if waiting == 1 else "engines"
        idle = "waiting for the queue to be empty" if self.is_on() else "switched off in the settings"
        return f"{waiting} {engines} to build: {stage or idle}"

    def _work(self) -> None:
        while self._has_work():
            wanted: dict[str, _Wanted] = {}
            try:
                self._wait_for_calm()
                wanted = dict(self._wanted)
                self._build(wanted)
            except _BusyError:
                log.info("Building engines is put off: there is something to run.")
            except Exception:  # the thread goes on with the next wanted engines
                log.exception("Engines could not be built while there was nothing to run.")
                self._drop(*(wanted or dict(self._wanted)))
            finally:
                self._stage = ""

    def _has_work(self) -> bool:
        """Whether the thread is to go on; if not, the next wanted engine starts another thread."""
        with self._lock:
            if not self._wanted:
                self._thread = None
            return bool(self._wanted)

    def _wait_for_calm(self) -> None:
        since = time.monotonic()
        while time.monotonic() - since < self.calm_s:
            time.sleep(min(POLL_S, self.calm_s))
            if not self.host.is_idle():
                since = time.monotonic()

    def _build(self, wanted: dict[str, _Wanted]) -> None:
        """Builds all wanted engines, as many at a time as there is room for; raises _BusyError."""
        requests = [each.request for each in wanted.values()]
        self.host.free_device(max(needed_device_bytes(request) for request in requests))
        tasks = [self._task(name, each) for name, each in wanted.items()]
        build_in_parallel(tasks, builds_at_once(requests), self._report)

    def _task(self, name: str, wanted: _Wanted) -> Task:
        def task(process: BuildProcess, report: Report) -> None:
            try:
                build_engine(wanted.request, wanted.store, process, report=report)
            except CancelledError:
                raise
            except I2VError as error:
                log.warning("%s", error)
                if isinstance(error, EngineError):
                    if not self.host.is_idle():
                        return  # a prompt may have taken the memory that the build lacked: it is tried again
                    FAILED.remember(wanted.request, error, was_alone=True)
            except Exception as error:  # the others go on
                log.exception("%s could not be built.", wanted.request.spec.network.component)
                FAILED.remember(wanted.request, EngineError(f"The build failed: {error}."))
            self._drop(name)
            self._note_end()

        return task

    def _note_end(self) -> None:
        with self._lock:  # several builds may end at a time
            self.generation += 1

    def _drop(self, *names: str) -> None:
        with self._lock:
            for name in names:
                self._wanted.pop(name, None)

    def _report(self, stage: str, done: float) -> None:
        self._stage = f"{stage} {done:.0%}"
        if not self.host.is_idle():
            raise _BusyError

"""Work of a build's process on a request: compiles it, or its first part while other processes compile the rest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...common.device import current_device
from ...common.errors import EngineError
from ...common.vector_math import settle_vector_math
from ..backends.base import Part, Report
from .build_process import BuildProcess
from .compile import BuildRequest, Compiled, compile_engine, compiled_to_dict, request_from_dict

log = logging.getLogger(__name__)


class _StoppedError(Exception):
    """Ends the processes of other parts."""


def answer(data: Mapping[str, Any], log_path: Path, report: Report) -> dict[str, Any]:
    """Compiles what `compile.request_to_dict` has described; returns `compile.compiled_to_dict`'s data.

    A network that cannot be compiled in parts is compiled in one piece. Raises EngineError and StorageError as
    `compile.compile_engine` does.
    """
    settle_vector_math()
    request, folder = request_from_dict(data), Path(data["folder"])
    with current_device(request.device):  # compilers take the current GPU
        if request.part.count > 1 and request.part.index == 0:
            return compiled_to_dict(_in_parts(request, folder, log_path, report))
        return compiled_to_dict(compile_engine(request, folder, report))


def _in_parts(request: BuildRequest, folder: Path, log_path: Path, report: Report) -> Compiled:
    try:
        with OtherParts(request, folder, log_path) as others:
            return compile_engine(request, folder, report, others.wait)
    except EngineError as error:
        log.warning("in %d parts it cannot be compiled: %s", request.part.count, error)
    for path in folder.iterdir():  # of all parts
        path.unlink()
    return compile_engine(request, folder, report)


class OtherParts:
    """All parts of a network but the first, each compiled in a process of its own until the block ends."""

    def __init__(self, request: BuildRequest, folder: Path, log_path: Path) -> None:
        self._stop = threading.Event()
        self._errors: list[BaseException] = []
        parts = [Part(index, request.part.count) for index in range(1, request.part.count)]
        self._threads = [
            threading.Thread(
                target=self._compile,
                args=(replace(request, part=part), folder, log_path.with_suffix(f".{part.index}{log_path.suffix}")),
                daemon=True,
            )
            for part in parts
        ]

    def __enter__(self) -> OtherParts:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def wait(self) -> None:
        """Returns when all are compiled; raises the first error that one of them met."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def _compile(self, request: BuildRequest, folder: Path, log_path: Path) -> None:
        try:
            with BuildProcess() as process, suppress(_StoppedError):
                process.compile(request, folder, log_path, self._go_on)
        except BaseException as error:
            self._errors.append(error)
            self._stop.set()

    def _go_on(self, stage: str, done: float) -> None:
        if self._stop.is_set():
            raise _StoppedError

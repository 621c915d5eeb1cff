"""A build in a child process, which reports its progress, can be cancelled, and whose death is explained.

The child starts fresh, so that it shares no GPU context, no thread and no lock with ComfyUI; a crash
of the child leaves the host alive.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...common import errors
from ...common.child_process import child_environment, end, hear, last_line
from ...common.errors import EngineError, StorageError
from ..backends.base import Report
from .compile import BuildRequest, Compiled, compiled_from_dict, request_to_dict

log = logging.getLogger(__name__)

CHILD = Path(__file__).resolve().with_name("worker.py")
POLL_S = 0.2
"""Seconds between checks for cancellation while the child is silent."""
GRACE_S = 2.0
"""Seconds that a cancelled child may take to end by itself."""

_HAS_GROUPS = os.name == "posix"
"""Whether a process and all that it starts can be ended at once."""
_WINDOWS_ACCESS_VIOLATION = 0xC0000005


class BuildProcess:
    """A child that compiles one request after another; started by the first, ended with the block.

    Serves one thread. After an error, a crash or a cancellation the next request starts another child.
    """

    def __init__(self) -> None:
        self._child: _Child | None = None

    def __enter__(self) -> BuildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def compile(self, request: BuildRequest, folder: Path, log_path: Path, report: Report) -> Compiled:
        """`compile.compile_engine` in the child; what it prints goes to `log_path`.

        `report` is called at every stage and at least every 0.2 s, and may raise to cancel: the child is
        then ended before the exception goes on. Raises the child's own error, or EngineError with the
        cause of its death.
        """
        _begin(log_path)
        data, has_built = {**request_to_dict(request, folder), "log": str(log_path)}, self._child is not None
        child, answer = self._ask(data, report)
        if answer is None and has_built:  # it died with nothing to do: no fault of this request's
            self._end()
            child, answer = self._ask(data, report)
        answer = answer or {}
        if "result" in answer:
            return compiled_from_dict(answer["result"])
        if "error" in answer:
            self._end()  # an error of CUDA's may have left it unfit for the next request
            raise _error(answer)
        returncode = child.wait()
        self._end()
        raise EngineError(
            f"The build of {request.spec.network.component} {_cause(returncode)}; "
            f"its last words: {last_line(log_path)} (log: {log_path})"
        )

    def _ask(self, data: dict[str, Any], report: Report) -> tuple[_Child, dict[str, Any] | None]:
        """The child and its answer, see `listen`; ends the child if `report` raises."""
        child = self._living()
        try:
            child.send(data)
            return child, child.listen(report)
        except BaseException:
            self._end()
            raise

    def _living(self) -> _Child:
        """The child, or another one if it died while it had nothing to do."""
        if self._child is None or not self._child.is_alive:
            self._end()
            self._child = _Child()
        return self._child

    def _end(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            child.end()


class _Child:
    """The process, and one thread that reads its output for as long as it lives."""

    def __init__(self) -> None:
        # A list of our own interpreter and our own file: no part of it comes from a user.
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=child_environment(),
            start_new_session=_HAS_GROUPS,
        )
        self._lines = hear(self._process)

    @property
    def is_alive(self) -> bool:
        """Whether the process has not ended yet."""
        return self._process.poll() is None

    def wait(self) -> int:
        """The exit status of a child whose output has ended; kills a child that does not end by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(GRACE_S)
        self.end()
        return self._process.wait()

    def send(self, request: dict[str, Any]) -> None:
        """Sends a request; for a dead child `listen` gives the answer."""
        stream = self._process.stdin
        if stream is not None:
            with suppress(OSError):
                stream.write(json.dumps(request) + "\n")
                stream.flush()

    def listen(self, report: Report) -> dict[str, Any] | None:
        """Passes progress on until the child has answered.

        The answer is empty when it died first, and None when it did so without a word.
        """
        stage, done, has_begun = "start", 0.0, False
        while True:
            report(stage, done)
            try:
                line = self._lines.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if line is None:
                return {} if has_begun else None
            message, has_begun = json.loads(line), True
            if "stage" not in message:
                return message
            stage, done = message["stage"], message["done"]

    def end(self) -> None:
        """Ends the process, asked first, then made to; and the compilers that it may have started."""
        end(self._process, GRACE_S)
        if _HAS_GROUPS:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


def _error(answer: dict[str, Any]) -> errors.I2VError:
    """The child's error as one of our own, of the same kind."""
    kind = getattr(errors, str(answer.get("kind")), EngineError)
    return kind(answer["error"]) if issubclass(kind, errors.I2VError) else EngineError(answer["error"])


def _cause(returncode: int) -> str:
    """Cause of the child's end, in words, and advice."""
    if returncode == -signal.SIGSEGV or returncode & 0xFFFFFFFF == _WINDOWS_ACCESS_VIOLATION:
        return "crashed (segmentation fault): try another backend or precision"
    if returncode == -getattr(signal, "SIGKILL", 9):
        return "was killed, most often because memory ran out: close other programs or choose a smaller size"
    if returncode < 0:
        return f"was ended by signal {-returncode}"
    return f"ended without an answer (exit status {returncode})"


def _begin(log_path: Path) -> None:
    try:
        log_path.parent.mkdir(parents=True, exist_ok=True)
        log_path.write_text("", "utf-8")
    except OSError as error:
        raise StorageError(f"The log {log_path} cannot be written: {error.strerror or error}.") from error

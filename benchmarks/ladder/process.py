"""A process that one task runs in: watched, ended when its time is over, and its end put into words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from ...common.child_process import last_line
from ...common.pack_paths import PACK

GRACE_S = 3.0
COMMAND = (str(PACK / "run.py"), "--inside", "bench", "ladder", "--child")


def run_order(path: Path, log: Path, timeout_s: float | None, environment: Mapping[str, str]) -> str:
    """Runs the order in `path` to its end; returns the reason of a failure, empty on success.

    Libraries' messages go to `log`, progress to our own output. The process and its own children are ended
    together, also when this process is interrupted.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as errors:
        # Our own interpreter and our own file: no part of it comes from a user.
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, *COMMAND, str(path)],
            stderr=errors,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            status = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            return f"It was ended after {timeout_s:.0f} s, which was all the time there was for it."
        finally:
            _end(process)
    return "" if status == 0 else f"Its process {_cause(status)}; its last words: {last_line(log)}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the process and those it started, which are a group of their own."""
    for number in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with suppress(OSError):
            if hasattr(os, "killpg"):
                os.killpg(process.pid, number)
            elif process.poll() is None:
                process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _cause(status: int) -> str:
    if status == -getattr(signal, "SIGSEGV", 11):
        return "crashed with a segmentation fault"
    if status == -getattr(signal, "SIGKILL", 9):
        return "was killed, most often because memory ran out"
    return f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"

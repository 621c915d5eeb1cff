"""Talk with a process that prepares a row of a benchmark, and then measures it at each request."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from typing import Any

READY = "ready"
GOODBYE_S = 60.0
"""Seconds that a child has for its end, once all rounds are measured."""


def tell(text: str) -> None:
    """Prints a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def wait_ready(child: subprocess.Popen[str], deadline: float) -> bool:
    """Passes on the child's output until it is ready; False when it has ended or the time is over.

    `deadline` is of `time.monotonic`.
    """
    left_s = min(max(deadline - time.monotonic(), 1.0), threading.TIMEOUT_MAX)
    timer = threading.Timer(left_s, child.kill)
    timer.start()
    try:
        assert child.stdout is not None  # noqa: S101 - it is a pipe
        for line in child.stdout:
            if line.strip() == READY:
                return True
            tell(line.rstrip())
        return False
    finally:
        timer.cancel()


def ask(name: str, child: subprocess.Popen[str], what: str = "call") -> dict[str, Any]:
    """The figures of a child that is ready; empty when it fails."""
    assert child.stdin is not None and child.stdout is not None  # noqa: S101 - they are pipes
    try:
        child.stdin.write(f"{what}\n")
        child.stdin.flush()
        lines = iter(child.stdout.readline, "")
        figures: dict[str, Any] = json.loads(next((line for line in lines if line.startswith("{")), "{}"))
    except BrokenPipeError:
        figures = {}
    tell(f"{name}: {figures}")
    return figures


def end(child: subprocess.Popen[str]) -> None:
    """Lets a child that was asked for all it has come to its end, and ends any other."""
    try:
        child.communicate(timeout=GOODBYE_S)
    except (subprocess.TimeoutExpired, ValueError, OSError):
        child.kill()

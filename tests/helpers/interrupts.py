"""Processes that tests interrupt, and what they wait for."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 60.0


def heed_interrupts() -> None:
    """Run in a child before its program: what a shell starts in the background would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that nobody has waited for yet has ended."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.is_file() or stat.read_text("utf-8").rpartition(")")[2].split()[0] != "Z"


def wait_for(found: Callable[[], object], patience_s: float = PATIENCE_S) -> None:
    """Waits until something is so; the patience is for a machine with other work."""
    deadline = time.monotonic() + patience_s
    while not found():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)

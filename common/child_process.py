"""Child processes: their environment, their output, their end, and their last line."""

from __future__ import annotations

import getpass
import os
import queue
import subprocess
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

ALLOCATORS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
"""Variables of PyTorch's allocator settings, under their names over time."""
PATIENT = {"OMP_WAIT_POLICY": "PASSIVE"}
"""Variable by which threads of OpenMP sleep while they wait for each other, read when a process loads it.

By default they spin: on two cores with other work on them, a call of the bundled model's denoiser by two threads took
20 to 31 s and 7.5 to 10 s of the processor, and 4.1 to 4.4 s and 2.2 s with this."""
USER = "USER"
"""Variable of the user's name, which Python asks before it looks for the user's account."""


def hear(process: subprocess.Popen[str]) -> queue.Queue[str | None]:
    """The lines that the process writes, as they come, and None at its end; read by a thread of its own."""
    lines: queue.Queue[str | None] = queue.Queue()

    def work() -> None:
        with suppress(ValueError, OSError):
            for line in process.stdout or ():
                lines.put(line)
        lines.put(None)

    threading.Thread(target=work, daemon=True).start()
    return lines


def end(process: subprocess.Popen[str], grace_s: float) -> None:
    """Asks the process to end, and kills it if it does not within `grace_s` seconds."""
    for stop in (process.terminate, process.kill):
        if process.poll() is None:
            stop()
            with suppress(subprocess.TimeoutExpired):
                process.wait(grace_s)


def last_line(log_path: Path) -> str:
    """The last line of a process's log that is not empty, at most 300 characters, or `none`."""
    last: deque[str] = deque(maxlen=1)
    with suppress(OSError), log_path.open(encoding="utf-8", errors="replace") as stream:
        last.extend(line.strip() for line in stream if line.strip())
    return last[0][:300] if last else "none"


def child_environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables for a child, with `changes`.

    ComfyUI writes its choice of PyTorch's allocator into its own environment; with cudaMallocAsync a child could
    capture no CUDA graph. Other settings in those variables are the user's and stay, and so is a way to wait, which is
    `PATIENT` where there is none.

    PyTorch's compiler names its cache after the user, and up to PyTorch 2.12 it fails for one without an account, as in
    a container that is run under somebody's number: the child has that for a name.
    """
    found = {**PATIENT, **os.environ, **(changes or {})}
    if not found.get(USER) and (number := _nameless()) is not None:
        found[USER] = f"uid_{number}"
    for name in ALLOCATORS:
        settings = [each for each in found.pop(name, "").split(",") if each.strip()]
        kept = [each for each in settings if not each.strip().startswith("backend:")]
        if kept:
            found[name] = ",".join(kept)
    return found


def _nameless() -> int | None:
    """The number of a user who has no name on this system; None for one who has."""
    try:
        getpass.getuser()
    except (KeyError, ImportError, OSError):
        return os.getuid() if hasattr(os, "getuid") else 0
    return None

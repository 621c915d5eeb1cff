"""Child processes of the command line: their status, Ctrl-C and the request to end."""

import signal
import subprocess
from collections.abc import Sequence


def run_child(command: Sequence[str]) -> int:
    """Run `command` to its end and return its exit status, or 128 + the signal that ended it.

    Ctrl-C reaches the child by itself, and it may want to tidy up: we wait for what it says.
    A request to end this process (SIGTERM) is handed on.
    """
    with subprocess.Popen(list(command)) as child:  # noqa: S603 - a list of our own, no shell
        before = signal.signal(signal.SIGTERM, lambda *_: child.terminate())
        try:
            status = _wait(child)
        finally:
            signal.signal(signal.SIGTERM, before)
    return status if status >= 0 else 128 - status


def _wait(child: subprocess.Popen[bytes]) -> int:
    while True:
        try:
            return child.wait()
        except KeyboardInterrupt:
            continue

"""Child processes of the command line: their status, and how an interruption reaches them."""

import signal
import subprocess
from collections.abc import Sequence


def run_child(command: Sequence[str]) -> int:
    """Run `command` to its end and return its exit status, or 128 + the signal that ended it.

    Ctrl-C reaches the child by itself, SIGTERM is handed on to it; either way it may tidy up, and
    KeyboardInterrupt is raised once it has ended.
    """
    with subprocess.Popen(list(command)) as child:  # noqa: S603 - a list of our own, no shell

        def hand_on(*_: object) -> None:
            child.terminate()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, hand_on)
        try:
            status = _wait(child)
        finally:
            signal.signal(signal.SIGTERM, before)
    return status if status >= 0 else 128 - status


def _wait(child: subprocess.Popen[bytes]) -> int:
    interruption = None
    while True:
        try:
            status = child.wait()
            break
        except KeyboardInterrupt as caught:
            interruption = caught
    if interruption is not None:
        raise interruption
    return status

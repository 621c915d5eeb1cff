"""Processes that tests interrupt."""

import signal


def heed_interrupts() -> None:
    """Run in a child before its program: what a shell starts in the background would ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)

"""`run.py test`: ruff, pyright and pytest over the whole repository, and one summary.

Standard library only at module level; pytest is imported where it is run.
"""

import importlib
import importlib.util
import os
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .child import run_child
from .environment import ROOT, EnvironmentSetupError, Installer, say
from .extras import complete_fleet

NOT_REACHED = "not reached"
MOST_WORKERS = 4
"""A worker holds a ComfyUI of its own while it runs live tests, about 2 GB in all."""
TO_TELL = "i2v_live_tests"


@dataclass(eq=False)  # pytest keeps its plugins in sets
class LiveTests:
    """A pytest plugin that notes the outcomes of the tests marked `comfy`."""

    outcomes: dict[str, str] = field(default_factory=dict)
    reasons: set[str] = field(default_factory=set)
    left_out: int = 0

    def pytest_deselected(self, items: list[Any]) -> None:
        """Count the live tests that the command line leaves out."""
        self.left_out += sum(is_live(item) for item in items)

    def pytest_collection_finish(self, session: Any) -> None:
        """Note those that are going to run, now that every conftest.py has set its marks."""
        self.outcomes = {item.nodeid: NOT_REACHED for item in session.items if is_live(item)}

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Note how a live test ended; trouble before or after its body counts too."""
        if not is_live(report):
            return
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid] = report.outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons.add(str(report.longrepr[2]).removeprefix("Skipped: "))

    def pytest_sessionfinish(self, session: Any) -> None:
        """Send a worker's tests to its main process."""
        told = getattr(session.config, "workeroutput", None)
        if told is not None:
            told[TO_TELL] = (list(self.outcomes), self.left_out)

    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take a worker's tests: every worker collects all of them, so that one worker's hold for the run."""
        known, self.left_out = getattr(node, "workeroutput", {}).get(TO_TELL, ((), self.left_out))
        self.outcomes = dict.fromkeys(known, NOT_REACHED) | self.outcomes

    def summary(self) -> str:
        """One sentence: how many live tests ran, or why none did."""
        counts = Counter(self.outcomes.values())
        parts = [f"{count} {outcome}" for outcome, count in sorted(counts.items())]
        parts += [f"{self.left_out} left out by the command line"] if self.left_out else []
        why = f" ({'; '.join(sorted(self.reasons))})" if self.reasons else ""
        ran = counts["passed"] + counts["failed"]
        counted = ", ".join(parts) or "the selection holds none"
        return f"Tests against a live ComfyUI: {ran or 'none'} ran: {counted}{why}."


def is_live(item: Any) -> bool:
    """Whether a pytest item, or the report on one, is of a test that needs a ComfyUI."""
    return "comfy" in item.keywords


def run_tests(pytest_arguments: list[str], fast: bool) -> int:
    """Run the three steps in this environment, sum up, and return 0 if all passed, otherwise 1."""
    os.chdir(ROOT)
    os.environ.setdefault("PYRIGHT_PYTHON_IGNORE_WARNINGS", "1")  # or it asks the network for a newer one
    live = LiveTests()
    with suppress(EnvironmentSetupError):  # the tests then name what they lack
        complete_fleet()
    selection = ["-m", "not comfy and not gpu and not slow"] if fast else []
    workers = [] if one_process(pytest_arguments) else ["-n", str(min(os.cpu_count() or 1, MOST_WORKERS))]
    workers += ["--dist", "loadfile"] if workers else []
    steps = {
        "ruff": lambda: run_child([sys.executable, "-m", "ruff", "check", "."]),
        "pyright": lambda: run_child([sys.executable, "-m", "pyright", "--pythonpath", sys.executable]),
        "pytest": lambda: run_pytest(["-q", *workers, *selection, *pytest_arguments], live),
    }
    rows = []
    for name, step in steps.items():
        say(f"--- {name}")
        started = time.monotonic()
        status = step()
        verdict = f"FAILED, status {status}" if status else "passed"
        rows.append((status, f"{name:<8} {verdict:<18} {time.monotonic() - started:7.1f} s"))
    say("\n" + "\n".join(row for _, row in rows))
    say(live.summary())
    return int(any(status for status, _ in rows))


def one_process(pytest_arguments: list[str]) -> bool:
    """Whether the tests run in this process: as asked for, or where a person looks into one."""
    return any(argument in ("-s", "--pdb", "no:xdist") or argument.startswith("-n") for argument in pytest_arguments)


def run_only(marker: str, pytest_arguments: list[str]) -> int:
    """Run the tests of one marker and nothing else; pytest's own status."""
    os.chdir(ROOT)
    if marker == "browser" and importlib.util.find_spec("playwright") is None:
        with suppress(EnvironmentSetupError):  # the tests then name what they lack
            Installer().install(Path(sys.executable), [ROOT / "tests" / "browser" / "requirements.txt"])
    return run_pytest(["-q", "-m", marker, *pytest_arguments], LiveTests())


def run_pytest(arguments: list[str], plugin: LiveTests) -> int:
    """Run pytest in this process, for `python -m pytest` would put the root on sys.path."""
    return int(importlib.import_module("pytest").main(arguments, plugins=[plugin]))

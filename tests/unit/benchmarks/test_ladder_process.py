"""Processes of the ladder are ended with all they started, and say how they ended."""

import sys
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks.ladder import process
from i2v_tensorrt.benchmarks.ladder.process import run_order

from ...helpers.interrupts import is_alive, wait_for

SLEEPS = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "script.py"
    monkeypatch.setattr(process, "COMMAND", (str(path),))
    return path


def run(tmp_path: Path, timeout_s: float = 60.0) -> str:
    return run_order(tmp_path / "order", tmp_path / "logs" / "log", timeout_s, {"OF_THE_LADDER": "told"})


@pytest.mark.skipif(sys.platform == "win32", reason="process groups")
def test_what_takes_too_long_is_ended_with_its_children(tmp_path: Path, script: Path) -> None:
    script.write_text(SLEEPS, "utf-8")
    assert run(tmp_path, timeout_s=4.0) == "It was ended after 4 s, which was all the time there was for it."
    grandchild = int((tmp_path / "order").read_text("utf-8"))
    wait_for(lambda: not is_alive(grandchild))


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, sys; sys.exit(os.environ['OF_THE_LADDER'] != 'told')", ""),
        ("import sys; print('first', file=sys.stderr); print('  last  ', file=sys.stderr); sys.exit(3)",
         "Its process ended with status 3; its last words: last"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
         "Its process was killed, most often because memory ran out; its last words: none"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
         "Its process crashed with a segmentation fault; its last words: none"),
    ],
    ids=["good", "status", "killed", "crashed"],
)  # fmt: skip
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_how_it_ended(tmp_path: Path, script: Path, code: str, reason: str) -> None:
    script.write_text(code, "utf-8")
    assert run(tmp_path) == reason

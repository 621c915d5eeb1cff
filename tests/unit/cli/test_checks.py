"""`run.py test`: its steps, its status, and what it says of the tests against a live ComfyUI."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from i2v_tensorrt.cli import test_command

RUN = Path(__file__).resolve().parents[3] / "run.py"

LIVE = """
import pytest

pytestmark = pytest.mark.comfy

def test_one(): pass
def test_two(): pytest.skip("no ComfyUI here") if {skip} else None
def test_three(): assert not {fail}
"""
UNIT = "def test_four(): raise AssertionError"
# Its own conftest.py marks that folder's tests late, as tests/live/conftest.py does.
LATE = """
import pytest

@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        if "late" in item.path.parts: item.add_marker("comfy")
"""
INNER = """
import runpy, sys
runpy.run_path(sys.argv[1])
from i2v_tensorrt.cli.test_command import LiveTests, run_pytest
live = LiveTests()
run_pytest(["-q", "-p", "no:cacheprovider", "--import-mode=importlib", *sys.argv[2:]], live)
print(live.summary())
"""


Seen = list[list[str]]


def run_inner(folder: Path, files: dict[str, str], arguments: list[str], markers: str) -> list[str]:
    """What is said of a run of those tests under our own conftest.py, line by line."""
    for name, content in {**files, "pytest.ini": f"[pytest]\nmarkers =\n  {markers}\n"}.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content)
    command = [sys.executable, "-c", INNER, str(RUN), *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.splitlines()


def conftest_with(before: str = "", after: str = "") -> str:
    """Our own, with one thing changed in it."""
    ours = (RUN.parent / "tests" / "conftest.py").read_text("utf-8")
    assert before in ours
    return ours.replace(before, after) if before else ours


@pytest.mark.parametrize(
    ("skip", "fail", "arguments", "sentence"),
    [
        (False, False, "", "4 ran: 4 passed."),
        (False, True, "", "4 ran: 1 failed, 3 passed."),
        (True, False, "", "3 ran: 3 passed, 1 skipped (no ComfyUI here)."),
        (True, False, "-k two", "none ran: 1 skipped, 3 left out by the command line (no ComfyUI here)."),
        (False, True, "-x test_live.py late", "3 ran: 1 failed, 1 not reached, 2 passed."),
        (False, False, "-mnot,comfy", "none ran: 4 left out by the command line."),
        (False, False, "test_unit.py", "none ran: the selection holds none."),
        (
            True,
            False,
            "-n2 -knot,five",
            "2 ran: 2 passed, 1 skipped, 1 left out by the command line (no ComfyUI here).",
        ),
        (False, False, "-n2 -mnot,comfy", "none ran: 4 left out by the command line."),
    ],
)
def test_the_summary_says_what_became_of_live_tests(
    tmp_path: Path, skip: bool, fail: bool, arguments: str, sentence: str
) -> None:
    files = {
        "conftest.py": conftest_with("ROOT = TESTS.parent", f"ROOT = Path({str(RUN.parent)!r})"),
        "late/conftest.py": LATE,
        "late/test_late.py": "def test_five(): pass",
        "test_live.py": LIVE.format(skip=skip, fail=fail),
        "test_unit.py": UNIT,
    }
    told = run_inner(tmp_path, files, [word.replace(",", " ") for word in arguments.split()], "comfy: live")
    assert told[-1] == f"Tests against a live ComfyUI: {sentence}"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    """What pytest is run with, which ends with status 3; every other step passes."""
    found: Seen = []
    monkeypatch.chdir(RUN.parent)
    monkeypatch.setattr(test_command, "run_child", lambda command: 0)
    monkeypatch.setattr(test_command, "run_pytest", lambda arguments, plugin: found.append(arguments) or 3)
    return found


@pytest.mark.parametrize(("statuses", "expected"), [({}, 0), ({"ruff": 1}, 1), ({"pyright": 2}, 1), ({"pytest": 5}, 1)])
def test_one_failing_step_fails_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], statuses: dict[str, int], expected: int
) -> None:
    monkeypatch.chdir(RUN.parent)
    monkeypatch.setattr(test_command, "run_child", lambda command: statuses.get(command[2], 0))
    monkeypatch.setattr(test_command, "run_pytest", lambda arguments, plugin: statuses.get("pytest", 0))
    assert test_command.run_tests([], fast=True) == expected
    summary = capsys.readouterr().out.splitlines()
    for name in ("ruff", "pyright", "pytest"):
        verdict = f"FAILED, status {statuses[name]}" if name in statuses else "passed"
        assert any(line.startswith(name) and verdict in line for line in summary)


@pytest.mark.parametrize(("fast", "selection"), [(True, ["-m", "not comfy and not gpu and not slow"]), (False, [])])
def test_fast_leaves_out_live_and_slow_tests(seen: Seen, fast: bool, selection: list[str]) -> None:
    test_command.run_tests(["-x"], fast)
    assert seen == [["-q", "-n", seen[0][2], "--dist", "loadfile", *selection, "-x"]]
    assert 1 <= int(seen[0][2]) <= test_command.MOST_WORKERS


@pytest.mark.parametrize("argument", ["-n0", "-s", "--pdb"])
def test_who_looks_into_a_test_gets_it_in_one_process(seen: Seen, argument: str) -> None:
    test_command.run_tests([argument], fast=False)
    assert seen == [["-q", argument]]


def test_one_marker_alone_runs_without_the_other_steps(seen: Seen, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(test_command, "run_child", lambda command: pytest.fail(f"{command} was run"))
    assert test_command.run_only("torture", ["-x"]) == 3
    assert seen == [["-q", "-m", "torture", "-x"]]


@pytest.mark.usefixtures("seen")
@pytest.mark.parametrize(("there", "installed"), [(True, []), (False, ["tests/browser/requirements.txt"])])
def test_the_browser_s_library_is_installed_when_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, there: bool, installed: list[str]
) -> None:
    monkeypatch.setattr(test_command.importlib.util, "find_spec", lambda name: object() if there else None)
    files: list[Path] = []
    monkeypatch.setattr(test_command.Installer, "install", lambda self, python, given: files.extend(given))
    test_command.run_only("torture", [])
    assert files == []
    assert test_command.run_only("browser", []) == 3
    assert [path.relative_to(RUN.parent).as_posix() for path in files] == installed
    assert all(path.is_file() for path in files)


OUTER = """
import pytest

@pytest.mark.parametrize("count", [2, pytest.param(100, marks=pytest.mark.torture)])
def test_kills(count, evidence):
    evidence("kills", count, "all alive")
"""


@pytest.mark.parametrize(("arguments", "told"), [([], False), (["-m", "torture"], True), (["-m", "not slow"], False)])
def test_full_counts_run_only_by_name_and_say_what_they_found(tmp_path: Path, arguments: list[str], told: bool) -> None:
    files = {"conftest.py": conftest_with(), "test_counts.py": OUTER}
    lines = run_inner(tmp_path, files, arguments, "torture: full counts\n  slow: slow")
    assert any("1 passed, 1 deselected" in line for line in lines)
    row = [line.split() for line in lines if line.startswith("kills")]
    assert row == ([["kills", "100", "all", "alive"]] if told else [])


UNENDING = """
import time
import pytest

@pytest.mark.torture
def test_without_a_row():
    pass

@pytest.mark.torture
@pytest.mark.parametrize("number", range(3))
def test_with_a_row(number, evidence):
    evidence(f"row {number}", 1, "done")
    time.sleep(60 * number)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="a test that runs is ended by an alarm")
def test_full_counts_have_an_end_and_rows_come_first(tmp_path: Path) -> None:
    files = {"conftest.py": conftest_with("TORTURE_S = 4 * 3600", "TORTURE_S = 4"), "test_late.py": UNENDING}
    lines = run_inner(tmp_path, files, ["-m", "torture"], "torture: full counts")
    assert any("1 passed, " in line for line in lines)
    failed = [line for line in lines if line.startswith("FAILED ") and "not done within" in line]
    names = {line.split("::")[1].split(":")[0].split(" ")[0] for line in failed}
    assert names == {"test_with_a_row[1]", "test_with_a_row[2]", "test_without_a_row"}
    rows = [line.split()[:2] for line in lines if line.startswith("row ")]
    assert rows[0] == ["row", "0"]

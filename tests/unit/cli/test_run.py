"""run.py: the command line, the environment it brings along, and the statuses it hands through."""

import os
import shutil
import subprocess
import sys
import threading
import types
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from i2v_tensorrt.cli import main
from i2v_tensorrt.cli.child import run_child
from i2v_tensorrt.cli.environment import LOCK, STAMP, Environment, EnvironmentSetupError, Installer, only_one, python_in

RUN = Path(__file__).resolve().parents[3] / "run.py"


def bare_python(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run run.py without site-packages: what is not in the standard library cannot be imported."""
    command = [sys.executable, "-I", "-S", str(RUN), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@dataclass
class FakeInstaller(Installer):
    """Makes the interpreter as an empty file, and fails or breaks off where it is told to."""

    calls: list[str] = field(default_factory=list)
    fail: type[BaseException] | None = None

    def create(self, folder: Path) -> None:
        self.calls.append("create")
        python_in(folder).parent.mkdir(parents=True)
        python_in(folder).touch()

    def install(self, python: Path, requirements: Sequence[Path]) -> None:
        self.calls.append("install")
        if self.fail:
            raise self.fail("as told")
        assert python.is_file()


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("one==1\n")
    return Environment(tmp_path / "env", (requirements,))


def prepared(environment: Environment, installer: FakeInstaller | None = None) -> list[str]:
    """What the installer was asked for in one run."""
    installer = installer or FakeInstaller()
    assert environment.prepare(installer) == environment.python
    return installer.calls


# The command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], ["demo", "test", ".venv", "Python 3.10"]),
        (["test", "--help"], ["ruff", "pyright", "pytest", "--fast", "ComfyUI"]),
        (["words", "--help"], ["schemas", "--check", "--server", "ComfyUI"]),
    ],
)
def test_help_needs_the_standard_library_only(arguments: list[str], words: list[str]) -> None:
    result = bare_python(*arguments)
    assert result.returncode == 0, result.stderr
    assert all(word in result.stdout for word in words)


def test_help_of_the_demo_before_anything_is_installed(
    environment: Environment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main.main(["demo", "--help"], environment) == 0
    assert not environment.folder.exists()
    shown = capsys.readouterr().out
    assert all(word in shown for word in ("--out", "--prompt", "contact sheet", "ComfyUI"))


@pytest.mark.parametrize(
    ("arguments", "words"), [(["dance"], ["usage: run.py", "dance"]), ([], ["demo"])], ids=["unknown", "none"]
)
def test_no_command_of_ours_fails_with_the_usage(arguments: list[str], words: list[str]) -> None:
    result = bare_python(*arguments)
    assert result.returncode == 2
    assert all(word in (result.stderr if arguments else result.stdout) for word in words)


@pytest.mark.parametrize("version", [(2, 7), (3, 9)])
def test_old_python_gets_one_sentence(version: tuple[int, int]) -> None:
    pretend = f"import runpy, sys; sys.version_info = {version}; runpy.run_path({str(RUN)!r})"
    result = subprocess.run([sys.executable, "-c", pretend], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    expected = f"I2V TensorRT needs Python 3.10 or newer; this is Python {version[0]}.{version[1]}."
    assert result.stderr.splitlines() == [expected]


def test_the_job_gets_its_arguments_and_gives_its_status(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared(environment)
    seen: list[list[str]] = []
    monkeypatch.setattr(main, "run_child", lambda command: seen.append(command) or 7)
    assert main.main(["demo", "--out", "a b", "--steps", "2"], environment) == 7
    assert seen == [[str(environment.python), str(RUN), main.IN_ENV, "demo", "--out", "a b", "--steps", "2"]]


@pytest.mark.parametrize(("given", "found"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_a_command_has_patient_threads_before_it_is_imported(
    monkeypatch: pytest.MonkeyPatch, given: str | None, found: str
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", given or "")
    if given is None:
        monkeypatch.delenv("OMP_WAIT_POLICY")
    seen: list[str | None] = []

    def imported(name: str, package: str | None) -> types.SimpleNamespace:
        seen.append(os.environ.get("OMP_WAIT_POLICY"))
        return types.SimpleNamespace(main=lambda arguments: len(arguments))

    monkeypatch.setattr(main.importlib, "import_module", imported)
    assert main.inside("evaluate", ["--seeds", "1"]) == 2 and seen == [found]


def test_a_failed_set_up_is_one_sentence(
    environment: Environment, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("i2v_tensorrt.cli.environment.Installer", lambda: FakeInstaller(fail=EnvironmentSetupError))
    assert main.main(["test"], environment) == 1
    assert capsys.readouterr().err == "run.py: as told\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        *((f"raise SystemExit({status})", status) for status in (0, 1, 5)),
        pytest.param(
            "import os; os.kill(os.getpid(), 9)",
            128 + 9,
            marks=pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals"),
        ),
    ],
)
def test_exit_status_is_passed_through_and_a_signal_becomes_one(code: str, status: int) -> None:
    assert run_child([sys.executable, "-c", code]) == status


@pytest.mark.skipif(sys.platform == "win32", reason="Windows ends processes without signals")
def test_a_request_to_end_reaches_the_child_which_may_tidy_up(tmp_path: Path) -> None:
    tidied = tmp_path / "tidied"
    child = f"""
import signal, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.default_int_handler)
try:
    print("started", flush=True)
    time.sleep(60)
finally: Path({str(tidied)!r}).touch()
"""
    parent = f"""
import runpy, sys
runpy.run_path({str(RUN)!r})
from i2v_tensorrt.cli.child import run_child
try: run_child([sys.executable, "-c", {child!r}])
except KeyboardInterrupt: sys.exit(130)
"""
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.terminate()
        assert process.wait(30) == 130
    assert tidied.exists()


def test_an_interrupted_job_is_a_status(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(command: Sequence[str]) -> int:
        raise KeyboardInterrupt

    prepared(environment)
    monkeypatch.setattr(main, "run_child", interrupted)
    assert main.main(["test"], environment) == 130
    assert capsys.readouterr().err == "run.py: interrupted\n"


@pytest.mark.parametrize(
    ("name", "arguments", "given"),
    [
        ("run_tests", ["--fast", "tests/unit", "-k", "a or b"], (["tests/unit", "-k", "a or b"], True)),
        *(("run_only", [f"--{only}", "-x"], (only, ["-x"])) for only in ("gpu", "torture", "browser")),
    ],
)
def test_a_test_run_hands_the_rest_to_pytest(
    monkeypatch: pytest.MonkeyPatch, name: str, arguments: list[str], given: tuple[object, ...]
) -> None:
    seen: list[tuple[object, ...]] = []
    monkeypatch.setattr(main, name, lambda *found, **named: seen.append((*found, *named.values())) or 0)
    assert main.inside("test", arguments) == 0
    assert seen == [given]


# The environment


@pytest.mark.parametrize(("windows", "place"), [(True, "Scripts/python.exe"), (False, "bin/python")])
def test_where_the_interpreter_lies(tmp_path: Path, windows: bool, place: str) -> None:
    assert python_in(tmp_path, windows) == tmp_path / place


def test_an_environment_is_made_once_and_changed_requirements_are_installed_into_it(environment: Environment) -> None:
    assert prepared(environment) == ["create", "install"]
    assert prepared(environment) == []
    environment.requirements[0].write_bytes(b"one==1\r\n")  # line ends are no change
    assert prepared(environment) == []
    environment.requirements[0].write_text("one==2\n")
    assert prepared(environment) == ["install"]
    assert prepared(environment) == []


@pytest.mark.parametrize("fail", [EnvironmentSetupError, KeyboardInterrupt])
def test_what_was_interrupted_is_redone_from_nothing(environment: Environment, fail: type[BaseException]) -> None:
    with pytest.raises(fail):
        environment.prepare(FakeInstaller(fail=fail))
    left = environment.folder / "half-written"
    left.mkdir()
    assert not environment.is_ready()
    assert prepared(environment) == ["create", "install"]
    assert not left.exists()
    environment.requirements[0].write_text("one==2\n")
    with pytest.raises(fail):
        environment.prepare(FakeInstaller(fail=fail))
    environment.requirements[0].write_text("one==1\n")
    assert prepared(environment) == ["create", "install"]


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"state": "complete"}', "no python", "another python"])
def test_an_environment_that_is_not_whole_is_made_anew(
    environment: Environment, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    prepared(environment)
    if damage == "no python":
        environment.python.unlink()
    elif damage == "another python":
        monkeypatch.setattr("platform.python_version", lambda: "3.99.0")
    else:
        (environment.folder / STAMP).write_text(damage)
    assert prepared(environment) == ["create", "install"]


def test_an_environment_that_is_not_ours_or_that_runs_is_never_deleted(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs = environment.folder / "pyvenv.cfg"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    with pytest.raises(EnvironmentSetupError, match="something else made it"):
        environment.prepare(FakeInstaller())
    assert theirs.read_text() == "mine"
    shutil.rmtree(theirs.parent)
    prepared(environment)
    (environment.folder / STAMP).write_text("{}")
    monkeypatch.setattr(sys, "prefix", str(environment.folder))
    with pytest.raises(EnvironmentSetupError, match="outside of it"):
        environment.prepare(FakeInstaller())
    assert environment.python.exists()


def test_the_second_of_two_runs_waits_and_installs_nothing(environment: Environment) -> None:
    entered, leave = threading.Event(), threading.Event()

    class Slow(FakeInstaller):
        def install(self, python: Path, requirements: Sequence[Path]) -> None:
            super().install(python, requirements)
            entered.set()
            assert leave.wait(30)

    first, second = Slow(), FakeInstaller()
    runs = [threading.Thread(target=environment.prepare, args=(installer,)) for installer in (first, second)]
    runs[0].start()
    assert entered.wait(30)
    runs[1].start()
    runs[1].join(0.5)
    assert runs[1].is_alive()
    leave.set()
    for run in runs:
        run.join(30)
    assert (first.calls, second.calls) == (["create", "install"], [])


def test_a_killed_holder_gives_the_lock_back(tmp_path: Path) -> None:
    holder = f"""
import importlib.util, sys, time, runpy
from pathlib import Path
runpy.run_path({str(RUN)!r})
from i2v_tensorrt.cli.environment import only_one
with only_one(Path({str(tmp_path / LOCK)!r}), ""):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()
    with only_one(tmp_path / LOCK, "waiting"):
        pass


def test_an_installation_that_fails_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In pip, and in a Python without ensurepip."""
    requirements = tmp_path / "broken.txt"
    requirements.write_text("this is not a requirement\n")
    with pytest.raises(EnvironmentSetupError, match=r"install broken\.txt .* ended with 1"):
        Installer().install(Path(sys.executable), [requirements])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EnvironmentSetupError, match="python3-venv"):
        Installer().create(tmp_path / "env")


@pytest.mark.slow
def test_a_real_environment_runs(tmp_path: Path) -> None:
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("# nothing\n")
    environment = Environment(tmp_path / "env with space", (requirements,))
    script = "import sys; raise SystemExit(sys.prefix == sys.base_prefix)"
    assert run_child([str(environment.prepare()), "-c", script]) == 0

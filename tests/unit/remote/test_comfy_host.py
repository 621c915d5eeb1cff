"""The finder and the server's life, against a stand-in that is a few lines of main.py."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from i2v_tensorrt.remote.comfyui.server import (
    ComfyHost,
    ServerStartError,
    default_directory,
    find_comfyui,
    link_pack,
    not_found_reason,
    start_server,
)
from i2v_tensorrt.tests.helpers.interrupts import is_alive, wait_for

ANSWERS = """
import http.server, pathlib, subprocess, sys
child = subprocess.Popen([sys.executable, "child.py"], stdout=subprocess.PIPE)
pathlib.Path("child.port").write_bytes(child.stdout.readline())
print("\\x1b[32m[INFO]\\x1b[0m arguments:", *sys.argv[1:], flush=True)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/system_stats" else 404)
        self.end_headers()
port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
CHILD = """
import socket, time
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
time.sleep(600)
"""
CRASHES = "import sys; print('No module named torch', flush=True); sys.exit(3)"
IS_SILENT = "import time; print('still loading', flush=True); time.sleep(600)"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("COMFYUI_DIR", "COMFYUI_PYTHON"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "home"))


def make_comfyui(directory: Path, main: str = "") -> Path:
    directory.mkdir(parents=True)
    (directory / "main.py").write_text(main)
    (directory / "folder_paths.py").touch()
    return directory


@pytest.fixture
def comfyui(tmp_path: Path) -> ComfyHost:
    """A stand-in that answers, and that has started a process of its own."""
    directory = make_comfyui(tmp_path / "comfy", ANSWERS)
    (directory / "child.py").write_text(CHILD)
    return ComfyHost(directory, Path(sys.executable))


def make_file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def refuse_links(*_: object, **__: object) -> None:
    raise OSError("no privilege")


def found() -> ComfyHost:
    host = find_comfyui()
    assert host is not None
    return host


def test_environment_comes_before_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert find_comfyui() is None
    assert "COMFYUI_DIR" in not_found_reason()
    assert str(default_directory()) in not_found_reason()
    assert ComfyHost(make_comfyui(default_directory()), Path(sys.executable)) == found()
    named = make_comfyui(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_DIR", str(named))
    assert found().directory == named


@pytest.mark.parametrize(("variable", "name"), [("COMFYUI_DIR", "."), ("COMFYUI_PYTHON", "python")])
def test_what_is_named_and_missing_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str, name: str
) -> None:
    make_comfyui(default_directory())
    monkeypatch.setenv(variable, str(tmp_path / name))
    with pytest.raises(FileNotFoundError, match=variable) as caught:
        find_comfyui()
    assert str(tmp_path / name) in str(caught.value)


@pytest.mark.parametrize(
    "python",
    [".venv/bin/python", ".venv/Scripts/python.exe", "venv/bin/python", "../python_embeded/python.exe"],
)
def test_python_beside_the_checkout(python: str) -> None:
    beside = make_file(make_comfyui(default_directory()) / python)
    assert found().python.samefile(beside)


def test_named_python_comes_first_and_stays_in_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_file(make_comfyui(default_directory()) / ".venv/bin/python")
    named = tmp_path / "environment" / "python"
    named.parent.mkdir()
    named.symlink_to(make_file(tmp_path / "system" / "python"))
    monkeypatch.setenv("COMFYUI_PYTHON", str(named))
    assert found().python == named


@pytest.mark.parametrize("links", [True, False], ids=["link", "copy"])
def test_pack_is_put_among_the_custom_nodes(links: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pack = tmp_path / "pack"
    for name in ("__init__.py", "nodes/extension.py", ".git/HEAD", "nodes/__pycache__/extension.pyc"):
        make_file(pack / name)
    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse_links)
    target = link_pack(pack, tmp_path / "base")
    assert target == tmp_path / "base" / "custom_nodes" / "I2V-TensorRT"
    assert target.is_symlink() == links
    assert (target / "nodes" / "extension.py").is_file()
    assert (target / ".git").exists() == links
    # A base directory may be used again.
    (pack / "nodes" / "extension.py").rename(pack / "nodes" / "second.py")
    again = link_pack(pack, tmp_path / "base")
    assert [path.name for path in (again / "nodes").glob("*.py")] == ["second.py"]
    assert (pack / "nodes" / "second.py").is_file()
    assert link_pack(make_file(tmp_path / "probe.py"), tmp_path / "base", "probe.py").is_file(), "a single file too"


def test_server_answers_and_ends_with_its_children_though_the_block_fails(comfyui: ComfyHost, tmp_path: Path) -> None:
    port_file = comfyui.directory / "child.port"
    with pytest.raises(ZeroDivisionError), start_server(comfyui, tmp_path / "base", ["--cpu"]) as server:
        assert is_open(int(server.url.rpartition(":")[2]))
        assert is_open(int(port_file.read_text()))
        log = server.log()
        assert log.startswith("[INFO] arguments:")
        assert "--cpu" in log.split() and str(tmp_path / "base") in log
        raise ZeroDivisionError
    assert server.process.poll() is not None
    wait_for(lambda: not is_open(int(port_file.read_text())))  # it takes a killed process a moment to let go
    assert (tmp_path / "base" / "custom_nodes").is_dir()


@pytest.mark.parametrize(
    ("main", "timeout_s", "told"),
    [(CRASHES, 60.0, ["code 3", "No module named torch"]), (IS_SILENT, 2.0, ["2 s", "still loading"])],
    ids=["crash", "silence"],
)
def test_a_start_that_fails_shows_the_log(tmp_path: Path, main: str, timeout_s: float, told: list[str]) -> None:
    host = ComfyHost(make_comfyui(tmp_path / "comfy", main), Path(sys.executable))
    log_path = tmp_path / "server.log"
    with (
        pytest.raises(ServerStartError) as caught,
        start_server(host, tmp_path / "base", log_path=log_path, timeout_s=timeout_s),
    ):
        pytest.fail("the block ran without a server")
    assert all(part in str(caught.value) for part in [*told, str(log_path)])


STARTS = """
import runpy, sys, time
runpy.run_path({run!r})
from pathlib import Path
from i2v_tensorrt.remote.comfyui.server import ComfyHost, start_server
with start_server(ComfyHost(Path({comfyui!r}), Path(sys.executable)), Path({base!r}), ends_with_us=True) as server:
    print(server.process.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent is gone")
def test_a_server_that_is_to_end_with_us_ends_though_we_are_killed(comfyui: ComfyHost, tmp_path: Path) -> None:
    run = str(Path(__file__).resolve().parents[3] / "run.py")
    script = STARTS.format(run=run, comfyui=str(comfyui.directory), base=str(tmp_path / "base"))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_alive(pid)
        owner.kill()
    wait_for(lambda: not is_alive(pid))
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)  # the stand-in's own child


def is_open(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False

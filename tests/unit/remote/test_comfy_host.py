"""The finder and the server's life, against a stand-in that is a few lines of main.py."""

import socket
import sys
import time
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


def test_nothing_found_says_where_it_looked() -> None:
    assert find_comfyui() is None
    assert "COMFYUI_DIR" in not_found_reason()
    assert str(default_directory()) in not_found_reason()


def test_default_directory_is_found_with_the_running_python() -> None:
    directory = make_comfyui(default_directory())
    assert find_comfyui() == ComfyHost(directory, Path(sys.executable))


def test_environment_comes_before_default(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_comfyui(default_directory())
    named = make_comfyui(tmp_path / "named")
    monkeypatch.setenv("COMFYUI_DIR", str(named))
    found = find_comfyui()
    assert found is not None
    assert found.directory == named


def test_a_name_without_comfyui_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_comfyui(default_directory())
    monkeypatch.setenv("COMFYUI_DIR", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="COMFYUI_DIR") as caught:
        find_comfyui()
    assert str(tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    "python",
    [".venv/bin/python", ".venv/Scripts/python.exe", "venv/bin/python", "../python_embeded/python.exe"],
)
def test_python_beside_the_checkout(python: str) -> None:
    directory = make_comfyui(default_directory())
    beside = make_file(directory / python)
    found = find_comfyui()
    assert found is not None
    assert found.python.samefile(beside)


def test_named_python_comes_first_and_stays_in_its_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_file(make_comfyui(default_directory()) / ".venv/bin/python")
    named = tmp_path / "environment" / "python"
    named.parent.mkdir()
    named.symlink_to(make_file(tmp_path / "system" / "python"))
    monkeypatch.setenv("COMFYUI_PYTHON", str(named))
    found = find_comfyui()
    assert found is not None
    assert found.python == named


def test_a_named_python_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make_comfyui(default_directory())
    monkeypatch.setenv("COMFYUI_PYTHON", str(tmp_path / "python"))
    with pytest.raises(FileNotFoundError, match="COMFYUI_PYTHON"):
        find_comfyui()


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


@pytest.mark.parametrize("links", [True, False])
def test_a_base_directory_may_be_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool) -> None:
    pack = make_file(tmp_path / "pack" / "first.py").parent
    if not links:
        monkeypatch.setattr(Path, "symlink_to", refuse_links)
    link_pack(pack, tmp_path / "base")
    (pack / "first.py").rename(pack / "second.py")
    target = link_pack(pack, tmp_path / "base")
    assert [path.name for path in target.iterdir()] == ["second.py"]
    assert (pack / "second.py").is_file()


def test_a_single_file_is_put_among_the_custom_nodes(tmp_path: Path) -> None:
    target = link_pack(make_file(tmp_path / "probe.py"), tmp_path / "base", "probe.py")
    assert target.is_file()


def test_server_answers_and_ends_with_its_children(comfyui: ComfyHost, tmp_path: Path) -> None:
    with start_server(comfyui, tmp_path / "base", ["--cpu"]) as server:
        child_port = int((comfyui.directory / "child.port").read_text())
        assert is_open(int(server.url.rpartition(":")[2]))
        assert is_open(child_port)
        log = server.log()
    assert server.process.poll() is not None
    assert becomes_closed(child_port)
    assert (tmp_path / "base" / "custom_nodes").is_dir()
    assert log.startswith("[INFO] arguments:")
    assert "--cpu" in log.split()
    assert str(tmp_path / "base") in log


def test_server_ends_when_the_block_fails(comfyui: ComfyHost, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), start_server(comfyui, tmp_path / "base") as server:
        raise ZeroDivisionError
    assert server.process.poll() is not None


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


def is_open(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            return True
    except OSError:
        return False


def becomes_closed(port: int) -> bool:
    """A killed process takes a moment to let go of its sockets."""
    deadline = time.monotonic() + 10
    while is_open(port):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True

"""Finds a ComfyUI on this machine and starts its server for a while.

Only the standard library, and no import from the pack: `run.py` loads this file before
anything is installed. That is why its error is outside the pack's hierarchy.
"""

import ctypes
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# No proxy: the server is on this machine, and a proxy would answer in its place.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_NOT_PACK = shutil.ignore_patterns(".*", "__pycache__", "node_modules", "out")
_STOP_S = 10.0
_PR_SET_PDEATHSIG = 1


class ServerStartError(RuntimeError):
    """The server ended, or did not answer in time, before it was ready."""


@dataclass(frozen=True)
class ComfyHost:
    """A ComfyUI checkout and the Python that runs it."""

    directory: Path
    python: Path


@dataclass(frozen=True)
class ComfyServer:
    """A running server: `url` has no trailing slash, `log_path` takes its stdout and stderr."""

    url: str
    process: subprocess.Popen[bytes]
    base_directory: Path
    log_path: Path

    def log(self) -> str:
        """Output of the server so far, without terminal colours."""
        return _COLOUR.sub("", self.log_path.read_text("utf-8", errors="replace"))


def default_directory() -> Path:
    """Default folder of comfy-cli for ComfyUI."""
    home = Path.home()
    parent = home / "Documents" if sys.platform in ("win32", "darwin") else home
    return parent / "comfy" / "ComfyUI"


def not_found_reason() -> str:
    """One sentence for a user without the ComfyUI that is needed."""
    return f"no ComfyUI found: COMFYUI_DIR is not set and {default_directory()} holds none"


def find_comfyui() -> ComfyHost | None:
    """The ComfyUI that COMFYUI_DIR names, else comfy-cli's default one, else None.

    Its Python is COMFYUI_PYTHON, else the one of a virtual environment in the checkout, else
    the embedded one of the portable Windows build, else the running one.

    Raises:
        FileNotFoundError: an environment variable is set and names something else.
    """
    named = os.environ.get("COMFYUI_DIR")
    directory = Path(named).expanduser().absolute() if named else default_directory()
    if _is_comfyui(directory):
        return ComfyHost(directory, _find_python(directory))
    if named:
        raise FileNotFoundError(f"COMFYUI_DIR should name a ComfyUI folder, but {directory} is none")
    return None


def _is_comfyui(directory: Path) -> bool:
    return (directory / "main.py").is_file() and (directory / "folder_paths.py").is_file()


def _find_python(directory: Path) -> Path:
    named = os.environ.get("COMFYUI_PYTHON")
    if named:
        # Not resolved: a virtual environment's python is a link, and following it leaves the environment.
        python = Path(named).expanduser().absolute()
        if not python.is_file():
            raise FileNotFoundError(f"COMFYUI_PYTHON should name a Python, but {python} is no file")
        return python
    candidates = [
        directory / environment / executable
        for environment in (".venv", "venv")
        for executable in ("bin/python", "Scripts/python.exe")
    ]
    candidates.append(directory.parent / "python_embeded" / "python.exe")
    return next((path for path in candidates if path.is_file()), Path(sys.executable))


def link_pack(pack: Path, base_directory: Path, name: str = "I2V-TensorRT") -> Path:
    """Puts the folder or file `pack` among a base directory's custom nodes, and returns where.

    It is a link, or a copy where links are refused; the link or copy of an earlier call is replaced.
    """
    target = base_directory / "custom_nodes" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif target.is_dir():
        shutil.rmtree(target)
    try:
        target.symlink_to(pack.absolute(), target_is_directory=pack.is_dir())
    except (OSError, NotImplementedError):
        if pack.is_dir():
            shutil.copytree(pack, target, ignore=_NOT_PACK)
        else:
            shutil.copyfile(pack, target)
    return target


@contextmanager
def start_server(
    host: ComfyHost,
    base_directory: Path,
    extra_args: Sequence[str] = (),
    log_path: Path | None = None,
    timeout_s: float = 180.0,
    port: int | None = None,
    ends_with_us: bool = False,
) -> Iterator[ComfyServer]:
    """A server on a port of 127.0.0.1, ready to answer; it and its children end with the block.

    Args:
        host: the ComfyUI to start.
        base_directory: holds the models, custom nodes, input and output; made if missing.
        extra_args: further arguments of ComfyUI's main.py, such as `--cpu`.
        log_path: takes stdout and stderr; `comfyui.log` in the base directory by default.
        timeout_s: how long a start may take.
        port: a free one by default.
        ends_with_us: on Linux the server ends even where the thread that starts it is killed with its process.

    Raises:
        ServerStartError: it ended or stayed silent; the message ends with the log's tail.
    """
    # ComfyUI stops at once when a base directory lacks this folder.
    base_directory = base_directory.resolve()  # the server runs in ComfyUI's own folder
    (base_directory / "custom_nodes").mkdir(parents=True, exist_ok=True)
    log_path = log_path or base_directory / "comfyui.log"
    port = port or free_port()
    arguments = ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(base_directory)]
    command = [str(host.python), "main.py", "--disable-auto-launch", *arguments, *extra_args]
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - the caller's own ComfyUI
            command,
            cwd=host.directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=os.name == "posix",
            preexec_fn=_prepared_to_end() if ends_with_us else None,
        )
    server = ComfyServer(f"http://127.0.0.1:{port}", process, base_directory, log_path)
    try:
        _wait_until_ready(server, host, timeout_s)
        yield server
    finally:
        _stop(process)


def read_object_info(url: str) -> Any:
    """Inputs and outputs of each node of a server on this machine; raises OSError and ValueError."""
    with _OPENER.open(f"{url}/object_info", timeout=60) as response:
        return json.load(response)


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _prepared_to_end() -> Callable[[], object] | None:
    """Runs in a child before its program: the kernel kills it once its parent is gone. None on other systems."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl  # looked up before the fork
    return lambda: prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))


def _wait_until_ready(server: ComfyServer, host: ComfyHost, timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if server.process.poll() is not None:
            problem = f"exited with code {server.process.returncode} before it answered"
            raise ServerStartError(_failure(server, host, problem))
        with suppress(OSError), _OPENER.open(f"{server.url}/system_stats", timeout=5):
            return
        time.sleep(0.1)
    raise ServerStartError(_failure(server, host, f"did not answer within {timeout_s:g} s"))


def _failure(server: ComfyServer, host: ComfyHost, problem: str) -> str:
    tail = "\n".join(server.log().splitlines()[-20:])
    return f"ComfyUI in {host.directory} {problem}; its log {server.log_path} ends with:\n{tail}"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the server and its child processes: gently, then for certain."""
    if sys.platform == "win32":
        taskkill = Path(os.environ["SYSTEMROOT"]) / "System32" / "taskkill.exe"
        command = [str(taskkill), "/F", "/T", "/PID", str(process.pid)]
        subprocess.run(command, capture_output=True, check=False)  # noqa: S603 - a Windows tool
        process.wait(_STOP_S)
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        # The second signal is for children that outlive the server, so it is sent even after a clean end.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)

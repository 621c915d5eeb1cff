"""Finds a C++ compiler whose output the PyTorch at hand can load.

Not every compiler that compiles works: where one of another version comes first in the path, loading
its output can end the process. So the compiler is tried out, in a child, before it is used.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from functools import cache
from pathlib import Path

from ....common.child_process import child_environment
from ....common.digest import digest
from ....common.errors import EngineError

log = logging.getLogger(__name__)

PROOF = Path(__file__).resolve().with_name("cpp_probe.py")
NAMES = ("cl",) if os.name == "nt" else ("g++", "c++", "clang++")
SYSTEM = () if os.name == "nt" else ("/usr/bin/g++", "/usr/bin/c++", "/usr/bin/clang++")
"""The distribution's own compilers, for when the path leads to others first."""
PROOF_TIMEOUT_S = 300


def compilers() -> list[str]:
    """The compilers there are, by their paths, in the order in which they are tried."""
    found: dict[str, str] = {}
    for name in (os.environ.get("CXX"), *NAMES, *SYSTEM):
        path = shutil.which(name) if name else None
        if path is not None:
            found.setdefault(os.path.realpath(path), path)
    return list(found.values())


def install_line() -> str:
    """Command line or package that installs a compiler on this system."""
    if os.name == "nt":
        return "Build Tools for Visual Studio, with C++"
    return "xcode-select --install" if sys.platform == "darwin" else "sudo apt install g++ (or your system's GCC)"


def working_compiler(device: str) -> str:
    """The first compiler that makes engines which run on the device.

    Each is tried out once, which may take a minute; the proof is kept for other processes.
    Raises EngineError, with each compiler's fault, when there is none.
    """
    reasons = []
    for path in compilers():
        version = _version(path)
        reason = _proved(path, version, device, _verdict(path, version, device))
        if reason is None:
            return path
        log.warning("%s is passed over: %s", path, reason)
        reasons.append(f"{path}: {reason}")
    found = "; ".join(reasons) or "none"
    raise EngineError(
        f"Inductor needs a C++ compiler whose output this PyTorch can load, found {found}. "
        f"To install one: {install_line()}"
    )


@cache
def proof_begun(device: str) -> Future[str]:
    """`working_compiler` in a thread of its own, begun once in a process."""
    import torch._inductor.runtime.cache_dir_utils  # noqa: F401  # imported by two threads at once it fails

    found: Future[str] = Future()

    def work() -> None:
        try:
            found.set_result(working_compiler(device))
        except BaseException as error:
            found.set_exception(error)

    threading.Thread(target=work, name="i2v-compiler-proof", daemon=True).start()
    return found


def _proved(path: str, version: str, device: str, verdict: Path) -> str | None:
    """Reason why this compiler does not work, None when it does; of several processes one tries it out."""
    from filelock import FileLock

    if verdict.exists():
        return None
    try:
        verdict.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{verdict}.lock"):
            reason = None if verdict.exists() else _flaw(path, version, device)
            if reason is None:
                verdict.touch()
            return reason
    except (OSError, NotImplementedError):  # the verdict cannot be kept: it will prove itself again
        return _flaw(path, version, device)


def _version(path: str) -> str:
    """Output of the compiler's `--version`; another version has to be tried out anew."""
    try:
        done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    return done.stdout


def _verdict(path: str, version: str, device: str) -> Path:
    """The file that records a compiler's proof, beside Inductor's own caches, which hold code that Inductor runs."""
    import torch
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    told = [path, version, device, torch.__version__, sys.executable, PROOF.read_text("utf-8")]
    return Path(cache_dir()) / "i2v-compilers" / digest(told)


@cache
def _flaw(path: str, version: str, device: str) -> str | None:
    """Reason why this compiler's output does not run here; None when it does."""
    with tempfile.TemporaryDirectory(prefix="i2v-compiler-") as folder:
        # Our own interpreter, our own file, and the path of a compiler that this user can start.
        command = [sys.executable, str(PROOF), path, device, folder]
        try:
            done = subprocess.run(  # noqa: S603
                command, capture_output=True, text=True, timeout=PROOF_TIMEOUT_S, env=child_environment()
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            return type(error).__name__
    if done.returncode == 0:
        return None
    if done.returncode < 0:
        return f"loading its output ended with signal {-done.returncode}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:200].rstrip(".") if lines else f"exit status {done.returncode}"

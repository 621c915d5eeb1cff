"""The pack's own Python environment: made once, completed when its requirements change, shared by every run.

Standard library only, for this runs before anything is installed. Nothing here is for the nodes:
inside ComfyUI the pack lives in ComfyUI's environment and installs nothing.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..common.errors import I2VError

ROOT = Path(__file__).resolve().parent.parent
STAMP = "i2v-stamp.json"
LOCK = "i2v-lock"
INCOMPLETE = {"state": "incomplete"}


class EnvironmentSetupError(I2VError):
    """The pack's own Python environment could not be made."""


class Installer:
    """Access to the outside world: `venv` makes a folder into an environment, pip fills it."""

    def create(self, folder: Path) -> None:
        """Make `folder` an environment of the Python that runs this; raises EnvironmentSetupError."""
        if importlib.util.find_spec("ensurepip") is None:
            raise EnvironmentSetupError(
                f"{sys.executable} should be able to make environments with pip, but its ensurepip module is "
                "missing: install it first (on Debian and Ubuntu the package is called python3-venv)."
            )
        _call([sys.executable, "-m", "venv", str(folder)], f"make an environment in {folder}")

    def install(self, python: Path, requirements: Sequence[Path]) -> None:
        """Install the requirement files into the environment of `python`; raises EnvironmentSetupError."""
        command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        command += ["--prefer-binary"] + ([] if sys.stdout.isatty() else ["--quiet"])
        for path in requirements:
            command += ["-r", str(path)]
        _call(command, "install " + " and ".join(path.name for path in requirements))


@dataclass(frozen=True)
class Environment:
    """An environment in `folder` that holds what the files `requirements` name."""

    folder: Path
    requirements: tuple[Path, ...]

    @classmethod
    def of_repository(cls) -> "Environment":
        """The one of run.py: .venv in the root, for the demo and the tests alike."""
        return cls(ROOT / ".venv", (ROOT / "requirements.txt", ROOT / "tests" / "requirements.txt"))

    @property
    def python(self) -> Path:
        """Its interpreter, whether it is there yet or not."""
        return python_in(self.folder)

    def wanted(self) -> dict[str, str]:
        """The stamp that an environment finished now would bear."""
        digest = hashlib.sha256()
        for path in self.requirements:
            # Read as text: a checkout with other line ends asks for the same packages.
            digest.update(path.read_text("utf-8").encode() + b"\0")
        host = f"{platform.python_version()} {sys.platform} {platform.machine()}"
        return {"state": "complete", "python": host, "requirements": digest.hexdigest()}

    def found(self) -> dict[str, str]:
        """The stamp in the folder; empty without a readable stamp, or without an interpreter."""
        if not self.python.is_file():
            return {}
        try:
            stamp = json.loads((self.folder / STAMP).read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return stamp if isinstance(stamp, dict) else {}

    def is_ready(self) -> bool:
        """Whether the environment is complete and matches the requirement files."""
        return self.found() == self.wanted()

    def prepare(self, installer: Installer | None = None) -> Path:
        """Make or complete the environment if need be, and return its interpreter.

        A run that finds another one at work waits for it. Raises EnvironmentSetupError.
        """
        if self.is_ready():
            return self.python
        self._refuse_foreign()
        self.folder.mkdir(parents=True, exist_ok=True)
        with only_one(self.folder / LOCK, f"Another run is setting up {self.folder}; waiting ..."):
            if not self.is_ready():
                self._set_up(installer or Installer())
        return self.python

    def _set_up(self, installer: Installer) -> None:
        started = time.monotonic()
        found, wanted = self.found(), self.wanted()
        say(f"Setting up the environment in {self.folder} (this once; it may take minutes) ...")
        self._write(INCOMPLETE)
        if found.get("state") != "complete" or found.get("python") != wanted["python"]:
            self._clear()
            installer.create(self.folder)
        installer.install(self.python, self.requirements)
        self._write(wanted)
        say(f"The environment is ready after {time.monotonic() - started:.0f} s.")

    def _refuse_foreign(self) -> None:
        """Raise EnvironmentSetupError rather than delete an environment that another program made in the folder."""
        if (self.folder / STAMP).is_file() or (self.folder / LOCK).is_file():
            return
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise EnvironmentSetupError(
                f"{self.folder} should be free for run.py's own environment, but something else made it: "
                "move it away and try again."
            )

    def _clear(self) -> None:
        if Path(sys.prefix).resolve() == self.folder.resolve():
            raise EnvironmentSetupError(
                f"{self.folder} has to be made anew, which its own Python cannot do: "
                "start run.py with the Python that is outside of it."
            )
        # Stamp and lock stay, so that a removal cut short leaves a folder that is known as ours.
        for path in self.folder.iterdir():
            if path.name in (STAMP, LOCK):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()

    def _write(self, stamp: dict[str, str]) -> None:
        temporary = self.folder / f"{STAMP}.{os.getpid()}"
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump(stamp, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.folder / STAMP)
        finally:
            temporary.unlink(missing_ok=True)


def say(text: str) -> None:
    """Write a line for the user at once, so that the output of child processes comes after it."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def python_in(folder: Path, windows: bool = os.name == "nt") -> Path:
    """Path of the interpreter of the environment in `folder`."""
    return folder / "Scripts" / "python.exe" if windows else folder / "bin" / "python"


@contextlib.contextmanager
def only_one(path: Path, notice: str) -> Iterator[None]:
    """Hold the lock file `path`; says `notice` once if another process holds it.

    The system gives the lock back when its holder ends, however it ends.
    """
    with path.open("a+b") as file:
        if not _try_lock(file):
            say(notice)
            while not _try_lock(file):
                time.sleep(0.2)
        yield


def _try_lock(file: BinaryIO) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _call(command: list[str], purpose: str) -> None:
    status = subprocess.run(command, check=False).returncode  # noqa: S603 - our own list, no shell
    if status:
        raise EnvironmentSetupError(
            f"The attempt to {purpose} should have ended with status 0, but ended with {status}; "
            "what it said is above, and the next run begins anew."
        )

"""Faults at the level of system calls: a child process in which the chosen call fails, and clocks jump.

The C library's own functions are replaced in the child by tests/helpers/faults.c, which is compiled when it is needed;
nothing of the pack is.
"""

from __future__ import annotations

import enum
import mmap
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

SOURCE = Path(__file__).with_name("faults.c")
CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"
VARIABLE = "I2V_FAULTS"
START = """
import runpy, sys, importlib
runpy.run_path(sys.argv[1])
import torch
torch.set_num_threads(1)
module = importlib.import_module(sys.argv[2], "i2v_tensorrt")
getattr(module, sys.argv[3])(*sys.argv[4:])
"""
_HEAD = struct.Struct("6i2q")
_PAGE_BYTES = _HEAD.size + 4096


class Call(enum.IntFlag):
    """Kinds of system calls."""

    OPEN = 1
    WRITE = 2
    SYNC = 4
    RENAME = 8
    MKDIR = 16
    LINK = 32
    UNLINK = 64
    LOCK = 128
    ALLOCATE = 256


DISK = Call.OPEN | Call.WRITE | Call.SYNC | Call.RENAME | Call.MKDIR | Call.LINK
"""What a full, broken or read-only disk refuses."""


class Faults:
    """The page that decides what fails in this very process; only a child that `run_child` has started has one."""

    def __init__(self) -> None:
        with Path(os.environ[VARIABLE]).open("rb+") as stream:
            self._page = mmap.mmap(stream.fileno(), _PAGE_BYTES)

    @contextmanager
    def armed(
        self,
        calls: Call,
        error: int,
        after: int,
        *,
        stays: bool = False,
        root: Path | None = None,
        least_bytes: int = 0,
    ) -> Iterator[None]:
        """In the block the call number `after` fails (with 0 none, and they are only counted); `stays`: all later too.

        Only what concerns files below `root` counts, and allocations of `least_bytes` or more.
        """
        self._page[_HEAD.size :] = os.fsencode(root or "/nowhere").ljust(4096, b"\0")
        _HEAD.pack_into(self._page, 0, calls, error, after, stays, 0, 0, 0, least_bytes)
        try:
            yield
        finally:
            struct.pack_into("i", self._page, 0, 0)

    @contextmanager
    def clock(self, ahead_s: int) -> Iterator[None]:
        """In the block the time of day is that many seconds off."""
        offset = struct.calcsize("6i")
        struct.pack_into("q", self._page, offset, ahead_s)
        try:
            yield
        finally:
            struct.pack_into("q", self._page, offset, 0)

    @property
    def calls(self) -> int:
        """How many calls counted in the last block."""
        return _HEAD.unpack_from(self._page)[4]

    @property
    def hits(self) -> int:
        """How many of them failed."""
        return _HEAD.unpack_from(self._page)[5]


def compiled(folder: Path) -> Path:
    """The library, compiled into the folder; skips the test where that cannot be done."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if sys.platform != "linux" or compiler is None:
        pytest.skip("system calls are made to fail on Linux, with a C compiler")
    library = folder / "faults.so"
    command = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wno-sequence-point",
        "-Werror",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
    ]
    subprocess.run(command, check=True, capture_output=True)
    return library


def run_child(library: Path, module: str, function: str, *arguments: object, **more: str) -> str:
    """Runs `function` of a test module in a child in which calls can fail; what it prints. Fails as the child does."""
    page = library.with_suffix(".page")
    page.write_bytes(bytes(_PAGE_BYTES))
    command = [sys.executable, "-c", START, str(CONFTEST), module, function, *map(str, arguments)]
    done = subprocess.run(command, env=child_environment(library, page, more), capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def child_environment(library: Path, page: Path, more: Mapping[str, Any]) -> dict[str, str]:
    """The environment of a process in which calls can fail."""
    return {**os.environ, "LD_PRELOAD": str(library), VARIABLE: str(page), "PYTHONDONTWRITEBYTECODE": "1", **more}

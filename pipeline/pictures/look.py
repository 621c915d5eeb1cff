"""A look at a stranger's ONNX file from the host: in a child process, which may crash or grow without harm."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ...common.child_process import child_environment, end, hear
from ...common.errors import InputError
from .contract import AUTO, Contract, contract_from_dict

CHILD = Path(__file__).resolve().with_name("look_worker.py")
FEW_THREADS = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "4"}
"""Each thread reserves address space: on a hundred cores idle ones would take what there is."""
BASE_BYTES = 8 << 30
"""Address space of a look, beside several times the file: libraries ask for more of it than they ever touch."""
LIMIT_S = 600.0
"""A look takes a second for small networks, and minutes for one of a gigabyte on two cores."""
POLL_S = 0.2


def look(
    path: Path, layout: str = AUTO, output: str = "", still_wanted: Callable[[], object] = lambda: None
) -> Contract:
    """`find_contract` in a child process.

    `still_wanted` is called five times a second and may raise to cancel. Raises InputError for a file that is no
    picture network, that ends the process, or that takes too long.
    """
    request = {"path": str(path), "layout": layout, "output": output, "most_bytes": _most_bytes(path)}
    # A list of our own interpreter and our own file: no part of it comes from a user.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, str(CHILD)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
        env=child_environment(FEW_THREADS),
        start_new_session=os.name == "posix",
    )
    lines = hear(process)
    try:
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.write(json.dumps(request) + "\n")
                process.stdin.close()
        answer = _heard(lines, path.name, still_wanted)
    finally:
        end(process, POLL_S)
    if "error" in answer:
        raise InputError(str(answer["error"]))
    return contract_from_dict(answer["contract"])


def _most_bytes(path: Path) -> int:
    with suppress(OSError):
        return BASE_BYTES + 6 * path.stat().st_size
    return BASE_BYTES


def _heard(lines: queue.Queue[str | None], name: str, still_wanted: Callable[[], object]) -> dict[str, Any]:
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        still_wanted()
        with suppress(queue.Empty):
            line = lines.get(timeout=POLL_S)
            if line is None:
                raise InputError(f"Expected a picture network, found {name}, which ends the process that looks at it.")
            return json.loads(line)
    raise InputError(f"Expected a picture network that runs on a CPU within minutes, found {name}.")

"""Origin of a table of figures: the machine, the versions, the commit and the time."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import datetime, timezone
from typing import Any

import torch

from ...common.pack_paths import PACK
from ...runtime.tools.doctor import installed_versions
from .measure import query_gpu


def describe_machine(device: torch.device) -> dict[str, Any]:
    """The GPU and its driver, the processor, the system. Asks the driver, and takes no memory of the GPU."""
    found: dict[str, Any] = {
        "system": platform.platform(),
        "python": platform.python_version(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": None,
    }
    if device.type == "cuda":
        name, driver, memory = (query_gpu("name,driver_version,memory.total", device.index or 0) + [""] * 3)[:3]
        found |= {"gpu": name or "unknown CUDA GPU", "driver": driver, "gpu_memory_mib": memory}
    return found


def describe_versions() -> dict[str, str | None]:
    """Versions of the installed libraries."""
    return {"cuda": torch.version.cuda, "cudnn": _cudnn(), **dict(installed_versions())}


def describe_commit(told: str | None) -> str:
    """The commit that was measured, marked when files differ from it; `told` if it is given."""
    if told:
        return told
    commit = _git("rev-parse", "--short=12", "HEAD")
    if not commit:
        return "unknown"
    return f"{commit} with changes" if _git("status", "--porcelain", "--untracked-files=no") else commit


def now() -> str:
    """The time, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _git(*arguments: str) -> str:
    try:
        command = ["git", "-C", str(PACK), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return ""


def _cudnn() -> str | None:
    number = torch.backends.cudnn.version() if torch.cuda.is_available() else None
    return None if number is None else str(number)


def _processor() -> str:
    """The processor's name, which Linux keeps in a file."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            names = [line.partition(":")[2].strip() for line in stream if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()

"""What the GPU suite found, as one file for programs and one for people: to be attached to a bug report."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
NAME = "gpu-report"
SKIPPED = "skipped"
LAST_LINES = 30
"""How much of a failure is told."""
PACKAGES = (
    "torch",
    "triton",
    "diffusers",
    "transformers",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "tensorrt",
    "tensorrt-rtx",
)


@dataclass
class Case:
    """One test: how it ended, how long it took, why it was skipped or failed, and the figures that it noted."""

    name: str
    outcome: str
    elapsed_s: float
    reason: str = ""
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """The machine, and every case in the order in which it ended."""

    environment: dict[str, Any]
    cases: list[Case] = field(default_factory=list)

    def write(self, folder: Path) -> Path:
        """Writes both files whole or not at all; returns the path of the readable one."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{NAME}.txt"
        for target, text in ((folder / f"{NAME}.json", json.dumps(asdict(self), indent=1)), (path, self.text())):
            part = target.with_suffix(".part")
            part.write_text(f"{text}\n", "utf-8")
            part.replace(target)
        return path

    def text(self) -> str:
        """The report for people."""
        facts = [f"{name:<20} {_told(value)}" for name, value in self.environment.items()]
        ran = [case for case in self.cases if case.outcome != SKIPPED]
        rows = [f"{case.outcome:<8} {case.elapsed_s:7.1f} s  {case.name}{_details(case)}" for case in ran]
        reasons = Counter(case.reason for case in self.cases if case.outcome == SKIPPED)
        rows += [f"{SKIPPED:<8} {count:7} x  {reason}" for reason, count in reasons.items()]
        return "\n".join([*facts, "", *rows])


def _told(value: Any) -> str:
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


def _details(case: Case) -> str:
    lines = [f"{name}: {value}" for name, value in case.figures.items()] + case.reason.splitlines()[-LAST_LINES:]
    return "".join(f"\n{'':<20}{line}" for line in lines)


def environment() -> dict[str, Any]:
    """The pack, the GPU, the driver and the versions of what the backends need."""
    import torch

    properties = torch.cuda.get_device_properties(0)
    return {
        "pack": re.findall(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text("utf-8"), re.MULTILINE)[0],
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "gpu memory": f"{properties.total_memory / 2**30:.1f} GiB",
        "driver": driver(),
        "cuda of torch": torch.version.cuda,
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": versions(),
    }


def driver() -> str:
    """The driver's version, as nvidia-smi says it."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return "unknown, for there is no nvidia-smi"
    command = [program, "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout.strip() or f"unknown, for nvidia-smi ended with {done.returncode}"


def versions() -> dict[str, str]:
    """The installed ones of PACKAGES."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found

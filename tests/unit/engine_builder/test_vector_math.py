"""Sines on a CPU are exact from the first on, in every process that makes networks."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from i2v_tensorrt.common import device
from i2v_tensorrt.engine_builder.build import part_builds
from i2v_tensorrt.runtime.devices import rank
from i2v_tensorrt.tests.helpers.counts import Evidence, counted

ROOT = Path(__file__).resolve().parents[3]
FIRST = """
import runpy, sys
runpy.run_path(sys.argv[1], run_name="i2v_tensorrt_run")
from i2v_tensorrt.common.device import default_device
default_device()
import torch
angles = torch.arange(8000) / 10
print(float((torch.sin(angles) - torch.sin(angles.double())).abs().max()))
"""


class Settled(Exception):
    """Raised in place of the call."""


@pytest.mark.parametrize(
    ("module", "begin"),
    [
        (device, device.default_device),
        (part_builds, lambda: part_builds.answer({}, Path(), lambda stage, done: None)),
        (rank, rank.serve),
    ],
    ids=["commands", "builds", "ranks"],
)
def test_every_process_begins_with_it(module: ModuleType, begin: object, monkeypatch: pytest.MonkeyPatch) -> None:
    def settle() -> None:
        raise Settled

    monkeypatch.setattr(module, "settle_vector_math", settle)
    with pytest.raises(Settled):
        begin()  # type: ignore[operator]


@counted(3, 60, slow=True)
def test_the_first_sines_of_a_process_are_exact(count: int, evidence: Evidence) -> None:
    command = [sys.executable, "-c", FIRST, str(ROOT / "run.py")]
    errors = [float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(count)]
    assert max(errors) < 1e-6
    evidence("processes with exact first sines", count, "largest error below 1e-6")

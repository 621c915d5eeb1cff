"""Every name that the backend takes from TensorRT stands in the bindings of all three libraries, which were read."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import pytest

from .tensorrt_names import BACKEND, CONTROLS, backend_files, used_names

TABLE = json.loads(Path(__file__).with_name("tensorrt_names.json").read_text("utf-8"))
LIBRARIES, NAMES = TABLE["libraries"], TABLE["names"]
DIFFERENCES = BACKEND / "library.py"
"""The one file that may use what not every library has."""
SOURCE = """
import torch
class Monitor(trt.IProgressMonitor):
    def step_complete(self): ...
class Other(torch.nn.Module):
    def forward(self): ...
def build(library, spec):
    typed = library.module.NetworkDefinitionCreationFlag.STRONGLY_TYPED
    network.get_input(0).name
    self._engine.num_io_tensors
    spec.profile.ranges
    trt.__version__
"""


def test_names_are_read_off_the_source(tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text(SOURCE)
    assert used_names(tmp_path / "source.py") == {
        "IProgressMonitor",
        "step_complete",
        "NetworkDefinitionCreationFlag",
        "STRONGLY_TYPED",
        "get_input",
        "name",
        "num_io_tensors",
    }


def test_the_libraries_are_those_that_are_meant() -> None:
    assert [name.rpartition(".")[0].rpartition(".")[0] for name in LIBRARIES] == [
        "tensorrt 10.16",
        "tensorrt 11.4",
        "tensorrt_rtx 1.7",
    ]


@pytest.mark.parametrize("path", backend_files(), ids=lambda path: path.name)
def test_what_the_backend_uses_is_in_every_library(path: Path) -> None:
    used = used_names(path)
    assert len(used) > 5
    assert used - set(NAMES) == set(), "run tests/unit/engine_builder/tensorrt_names.py over the wheels again"
    missing = {name: sorted(set(LIBRARIES) - set(NAMES[name])) for name in used if NAMES[name] != LIBRARIES}
    if path == DIFFERENCES:
        assert missing, "the differences stand elsewhere now"
        assert all(NAMES[name] for name in missing)
    else:
        assert missing == {}


def test_what_tensorrt_11_removed_is_not_used() -> None:
    """These also show that the table can tell absence."""
    assert [name for name in CONTROLS if NAMES[name] != LIBRARIES[:1]] == []
    assert set().union(*map(used_names, backend_files())) & CONTROLS == set()


def test_the_table_agrees_with_the_library_that_can_be_imported() -> None:
    trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    classes = [value for _, value in inspect.getmembers(trt, inspect.isclass)]
    real = {name for thing in (trt, *classes) for name in dir(thing)}
    (rtx,) = (library for library in LIBRARIES if library.startswith("tensorrt_rtx"))
    assert [name for name in NAMES if (rtx in NAMES[name]) != (name in real)] == []

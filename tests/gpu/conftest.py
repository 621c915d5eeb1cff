"""The bundled model and its engines on the GPU at hand, for every backend; and the report of what was found."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.device import default_device
from i2v_tensorrt.common.pack_paths import BUNDLED
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.clip_sizes import clip_sizes
from i2v_tensorrt.runtime.demo_model import demo_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ..helpers.counts import REPORT_FOLDER
from ..helpers.gpu_report import ROOT, Case, Report, environment
from ..unit.benchmarks.conftest import job, make_order

__all__ = ["job", "make_order"]
NO_GPU = "No CUDA GPU that PyTorch can use was found, so nothing of the GPU suite ran."
CASES = "test_gpu.py::"
Inputs = Callable[[str, int], dict[str, torch.Tensor]]
Figures = Callable[..., None]

_cases: list[Case] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes a case once its body has ended, or what kept it from running."""
    if CASES not in report.nodeid or (report.when != "call" and report.passed):
        return
    reason = ""
    if not report.passed:
        told = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext.strip()
        reason = str(told).splitlines()[-1].removeprefix("Skipped: ") if report.skipped else str(told)
    figures = dict(value for name, values in report.user_properties if name == "figures" for value in values)  # pyright: ignore
    _cases.append(Case(report.nodeid.split(CASES)[1], report.outcome, round(report.duration, 2), reason, figures))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Writes the report, and says where it lies; or that there was no GPU."""
    if not _cases:
        return
    if not torch.cuda.is_available():
        terminalreporter.write_line(NO_GPU)
        return
    path = Report(environment(), _cases).write(Path(os.environ.get(REPORT_FOLDER) or ROOT / "out"))
    terminalreporter.write_line(f"The report of the GPU suite is {path} (and .json beside it).")


@pytest.fixture
def figures(record_property: Callable[[str, object], None]) -> Figures:
    """Notes figures for the report, by name; units stand in the names."""
    return lambda **values: record_property("figures", tuple(values.items()))


@pytest.fixture(scope="session", autouse=True)
def device() -> torch.device:
    """The GPU; without one nothing of this folder runs."""
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    return default_device()


@pytest.fixture
def graphs() -> None:
    """Skips a test of CUDA graphs where none is captured."""
    if torch.cuda.get_allocator_backend() != "native":
        pytest.skip("PyTorch's own allocator is not in use here, and nothing is captured with another.")


@pytest.fixture(scope="session")
def model() -> VideoModel:
    return open_model(BUNDLED)


@pytest.fixture(scope="session")
def sizes(model: VideoModel) -> dict[str, int]:
    """The bundled model's clip."""
    demo = demo_model(BUNDLED)
    return clip_sizes(model, demo.side, demo.side, demo.num_frames)


@pytest.fixture(scope="session", params=list(BACKENDS))
def engines(
    request: pytest.FixtureRequest, device: torch.device, model: VideoModel, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineSet]:
    """The model through one backend, which builds only where a test says so."""
    found = BACKENDS[request.param].availability(device)
    if not found.ok:
        pytest.skip(found.sentence)
    policy = EnginePolicy(request.param, "fp16", "exact", "stop")
    engines = EngineSet(model, EngineStore(tmp_path_factory.mktemp("engines")), policy, device)
    yield engines
    engines.unload()


@pytest.fixture(scope="session")
def reference(model: VideoModel, device: torch.device, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    """The model in eager PyTorch and fp32."""
    return EngineSet(model, EngineStore(tmp_path_factory.mktemp("none")), EnginePolicy("eager", "fp32"), device)


@pytest.fixture(scope="session")
def inputs(model: VideoModel, sizes: dict[str, int], device: torch.device) -> Inputs:
    """Random inputs of a component, by its name and a seed, shared by guidance's branches as they are in use."""

    def draw(component: str, seed: int) -> dict[str, torch.Tensor]:
        network = model.components[component].spec
        own = {name: sizes.get(name, limits.opt) for name, limits in network.limits.ranges.items()}
        rewrites = tuple(model.known_rewrites.get(component, ()))
        spec = EngineSpec(network, network.limits.exact(own), "fp16", rewrites)
        return {name: tensor.to(device) for name, tensor in example_inputs(spec, own, seed).items()}

    return draw


@pytest.fixture(autouse=True)
def settled() -> Iterator[None]:
    """Leaves no memory behind in PyTorch's cache."""
    yield
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()

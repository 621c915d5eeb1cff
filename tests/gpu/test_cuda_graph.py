"""CUDA graphs on a GPU: what a capture that fails leaves behind, which must be nothing."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.child_process import child_environment
from i2v_tensorrt.engine_builder.backends import cuda_graph
from i2v_tensorrt.engine_builder.backends.cuda_graph import CaptureError, can_capture, capture, is_launch_bound
from i2v_tensorrt.engine_builder.store.store import Plan

from ..helpers.inductor_toys import Mixed, build, loaded
from ..helpers.toys import LIMITS, toy_spec
from .test_inductor import CUDA, inputs_of

FAILURES = 20
MIB = 1 << 20
TESTS = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def unharmed(monkeypatch: pytest.MonkeyPatch, graphs: None) -> None:
    """Each test begins as a process does in which no capture has failed."""
    monkeypatch.setattr(cuda_graph, "_process", cuda_graph._Process())


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build(tmp_path_factory.mktemp("inductor"), CUDA, toy_spec(LIMITS, "fp16"), lambda: Mixed().half())


def product() -> torch.Tensor:
    return torch.ones(64, 64, device=CUDA) @ torch.ones(64, 64, device=CUDA)


def warm_up() -> None:
    """Has cuBLAS take its workspaces of 32 MiB, of which it keeps one for each stream."""
    for stream in (torch.cuda.current_stream(), cuda_graph.side_stream(CUDA)):
        with torch.cuda.stream(stream):
            product()
    torch.cuda.synchronize()


def synchronizing() -> torch.Tensor:
    found = product()
    torch.cuda.synchronize()  # not permitted in a capture
    return found


def raising() -> torch.Tensor:
    product()
    raise ValueError("the call itself failed")


def copying() -> torch.Tensor:
    return product() + float(product().sum())  # waits for the GPU


def drawing() -> torch.Tensor:
    torch.randn(8, device=CUDA)  # another's generator is what a capture marks
    return synchronizing()


FAULTS: tuple[Callable[[], torch.Tensor], ...] = (synchronizing, raising, copying, drawing)


@pytest.mark.parametrize("fault", FAULTS)
def test_after_a_capture_that_failed_everything_is_as_before(fault: Callable[[], torch.Tensor]) -> None:
    """Streams, random numbers, memory, and further captures."""
    warm_up()
    large = torch.empty(256 * MIB, dtype=torch.uint8, device=CUDA)
    torch.cuda.manual_seed(7)
    expected = [torch.randn(100, device=CUDA) for _ in range(2)]
    torch.cuda.manual_seed(7)
    assert torch.equal(torch.randn(100, device=CUDA), expected[0])
    stream, held = torch.cuda.current_stream(), torch.cuda.memory_allocated()
    with pytest.raises(CaptureError):
        capture(fault, CUDA, torch.cuda.graph_pool_handle())
    assert torch.cuda.current_stream() == stream
    assert torch.equal(torch.randn(100, device=CUDA), expected[1])
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    assert torch.cuda.memory_allocated() <= held + MIB
    free = torch.cuda.mem_get_info()[0]
    del large
    torch.cuda.empty_cache()
    assert torch.cuda.mem_get_info()[0] - free >= 256 * MIB
    graph, found = capture(product, CUDA, torch.cuda.graph_pool_handle())
    graph.replay()
    assert float(found[0, 0]) == 64


def test_twenty_failures_between_random_numbers_engines_and_builds(plan: Plan, tmp_path: Path) -> None:
    warm_up()
    runner, _ = loaded(plan, CUDA)
    inputs = inputs_of(runner)
    expected = runner(inputs)["prediction"]
    torch.cuda.manual_seed(3)
    numbers = [torch.randn(1000, device=CUDA) for _ in range(FAILURES)]
    torch.cuda.manual_seed(3)
    held = []
    for number in range(FAILURES):
        with pytest.raises(CaptureError):
            capture(FAULTS[number % len(FAULTS)], CUDA, torch.cuda.graph_pool_handle())
        assert torch.equal(torch.randn(1000, device=CUDA), numbers[number])
        assert torch.equal(runner(inputs)["prediction"], expected)
        gc.collect()
        torch.cuda.empty_cache()
        held.append(torch.cuda.memory_reserved())
    # PyTorch's smallest blocks are made once for each kind of failure.
    assert held[-1] <= held[len(FAULTS) - 1] + MIB
    rebuilt = build(tmp_path, CUDA, toy_spec(LIMITS, "fp16"), lambda: Mixed().half())
    again, _ = loaded(rebuilt, CUDA)
    torch.testing.assert_close(again(inputs)["prediction"], expected, rtol=1e-2, atol=1e-2)
    runner.unload()
    again.unload()


def test_an_engine_whose_capture_failed_runs_on_and_says_so_once(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_graph, "LAUNCH_BOUND", 0.0)
    runner, _ = loaded(plan, CUDA)
    inputs = inputs_of(runner)
    expected = runner(inputs)["prediction"]
    direct = runner._direct

    def failing(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        found = direct(given)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return found

    monkeypatch.setattr(runner, "_direct", failing)
    for _ in range(4):
        assert torch.equal(runner(inputs)["prediction"], expected)
    assert runner.warning is not None
    assert not can_capture(CUDA)
    runner.unload()
    runner.load()
    for _ in range(3):
        assert torch.equal(runner(inputs)["prediction"], expected)
    assert runner.warning is None
    runner.unload()


def test_a_graph_is_captured_where_the_cpu_takes_the_time_alone() -> None:
    small, large = (torch.ones(side, side, device=CUDA, dtype=torch.half) for side in (16, 8192))

    def many() -> torch.Tensor:
        x = small
        for _ in range(300):
            x = x + 1
        return x

    def heavy() -> torch.Tensor:
        x = large
        for _ in range(8):
            x = large @ x
        return x

    for call, pays in ((many, True), (heavy, False)):
        call()
        found, is_bound = is_launch_bound(call, CUDA)
        assert torch.equal(found, call())
        assert is_bound is pays


def test_with_comfyuis_default_allocator_nothing_is_captured() -> None:
    """In a process of its own: PyTorch's allocator is chosen once."""
    code = (
        "import runpy, sys, torch\n"
        "runpy.run_path(sys.argv[1])\n"
        "from i2v_tensorrt.engine_builder.backends.cuda_graph import can_capture\n"
        "x = torch.ones(4, device='cuda')\n"
        "print(torch.cuda.get_allocator_backend(), can_capture(x.device))"
    )
    found = []
    for environment in ({**os.environ, "PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}, child_environment()):
        command = [sys.executable, "-c", code, str(TESTS / "conftest.py")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found.append(done.stdout.split()[-2:])
    assert found == [["cudaMallocAsync", "False"], ["native", "True"]]

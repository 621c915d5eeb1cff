"""What is counted and timed, on work whose result is known."""

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import measure
from i2v_tensorrt.benchmarks.ladder.flops import count_tflop
from i2v_tensorrt.benchmarks.ladder.measure import CallWatch, StageClock, host_peaks, sample_ms, step_figures
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import NetworkSpec, TensorSpec

CPU = torch.device("cpu")


def test_each_call_is_timed_once() -> None:
    calls: list[int] = []
    watch = CallWatch(CPU)
    assert watch(lambda: calls.append(1) or "result") == "result"
    watch(lambda: calls.append(2))
    assert len(watch.milliseconds()) == len(calls) == 2
    assert len(sample_ms(lambda: calls.append(3), 5, CPU)) == 5
    assert calls.count(3) == 5 + measure.WARM_UP_CALLS


def test_figures_of_the_core_call() -> None:
    assert step_figures([float(n) for n in range(1, 101)]) == {
        "step_ms": 50.5, "step_p95_over_median": pytest.approx(95 / 50.5), "step_samples": 100,
    }  # fmt: skip
    assert step_figures([2.0]) == {"step_ms": 2.0, "step_p95_over_median": 1.0, "step_samples": 1}


def test_stages_follow_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([10.0, 12.0, 12.0, 12.5, 12.5])
    monkeypatch.setattr(measure.time, "monotonic", lambda: next(times))
    clock = StageClock(CPU)
    clock.mark("encode")
    clock.mark("denoise")
    assert clock.seconds == {"encode": 2.0, "denoise": 0.5}
    assert clock.peak_gib == {}


def test_host_memory_is_that_of_this_process() -> None:
    before = host_peaks()["host_peak_gib"]
    block = torch.ones(1 << 26)
    assert block.sum() and 0.05 < before <= host_peaks()["host_peak_gib"] < 64


def test_operations_of_a_linear_layer_at_another_size_than_its_weights_lie() -> None:
    spec = NetworkSpec(
        "f", "c", "", "", (TensorSpec("input", ("batch", 8)),), (TensorSpec("y", ("batch", 16)),), ShapeProfile()
    )
    network = torch.nn.Linear(8, 16).half()
    assert count_tflop(network, spec, {"batch": 1000}) == pytest.approx(2 * 1000 * 8 * 16 / 1e12)
    assert network.weight.device == CPU

"""What is counted and timed on work whose result is known, and rows that keep it whatever becomes of the process."""

import json
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import measure
from i2v_tensorrt.benchmarks.ladder.flops import count_tflop
from i2v_tensorrt.benchmarks.ladder.measure import CallWatch, StageClock, host_peaks, sample_ms, step_figures
from i2v_tensorrt.benchmarks.ladder.row import FIGURES, MEASURED, MISSING, Row, RowFile, read_row, row_from_dict
from i2v_tensorrt.common.errors import InputError
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


def test_what_was_added_is_on_disk_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows" / "a.json"
    file = RowFile(path, Row("a", "A"))
    file.add({"step_ms": 1.25, "kernels_per_step": None}, "a note", "a note")
    file.add({"step_ms": 1.5}, "a note", "another")
    assert read_row(path) == Row("a", "A", MISSING, "", {"step_ms": 1.5}, ("a note", "another"))
    file.close(MEASURED)
    assert read_row(path) == Row("a", "A", MEASURED, "", {"step_ms": 1.5}, ("a note", "another"))


@pytest.mark.parametrize("text", [None, "", "[1, 2", "{}", json.dumps({"name": "a", "title": "A", "state": "odd"})])
def test_a_file_that_is_none_gives_no_row(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "a.json").write_text(text, "utf-8")
    assert read_row(tmp_path / "a.json") is None


@pytest.mark.parametrize("change", [{"figures": {"speed": 1.0}}, {"state": "odd"}, {"colour": "red"}])
def test_unknown_content_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError):
        row_from_dict({"name": "a", "title": "A", **change})


def test_figures_keep_their_digits_and_say_what_they_mean() -> None:
    assert Row("a", "A").adding({"frames_max_abs": 2.861e-9}).figures["frames_max_abs"] == 2.861e-9
    row = Row("a", "A", figures={"gpu_resident_encode_gib": 2.0, "gpu_resident_decode_gib": 6.5})
    assert (row.peak_gib("resident"), row.peak_gib("offloaded")) == (6.5, None), "the worst stage"
    assert all(len(meaning) > 6 for meaning in FIGURES.values())


@pytest.mark.parametrize(
    ("visible", "index", "asked"), [("", 1, "1"), ("3", 0, "3"), ("2, GPU-5a", 1, "GPU-5a"), ("2", 4, "4")]
)
def test_the_gpu_that_a_process_sees_is_the_one_that_is_asked(
    monkeypatch: pytest.MonkeyPatch, visible: str, index: int, asked: str
) -> None:
    commands: list[list[str]] = []

    def run(command: list[str], **_: object) -> None:
        commands.append(command)
        raise OSError

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(measure.subprocess, "run", run)
    assert measure.query_gpu("memory.used", index) == []
    assert commands[0][-1] == f"--id={asked}"

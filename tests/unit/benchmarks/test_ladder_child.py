"""Rows are really measured, in this process and at a tiny size: row 0, our loop, and what goes wrong."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.benchmarks.ladder import child
from i2v_tensorrt.benchmarks.ladder.child import main
from i2v_tensorrt.benchmarks.ladder.job import Job
from i2v_tensorrt.benchmarks.ladder.order import order_from_json
from i2v_tensorrt.benchmarks.ladder.reference import reference_path
from i2v_tensorrt.benchmarks.ladder.row import FIGURES, INCOMPLETE, MEASURED, MISSING, Row, read_row
from i2v_tensorrt.benchmarks.ladder.variants import ENGINES, REFERENCE, STOCK, Variant

from .conftest import MakeOrder

ROW_0 = Variant(REFERENCE, "diffusers, fp32", STOCK, "fp32", 0)
EAGER = Variant("eager", "eager PyTorch", ENGINES, "fp32", 4)
STAGES = ("encode_s", "denoise_s", "decode_s", "write_s")


def climb(make_order: MakeOrder, variant: Variant, kind: str = "row") -> Row:
    order = make_order(variant, kind)
    assert order_from_json(order.to_json()) == order
    path = order.job.work_folder / "order.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(order.to_json(), "utf-8")
    status = main(path)
    row = read_row(order.rows / (f"{variant.name}.warm.json" if kind == "warm" else f"{variant.name}.json"))
    assert row is not None
    assert status == (0 if row.state == MEASURED else 1)
    return row


@pytest.fixture
def reference(make_order: MakeOrder) -> Row:
    return climb(make_order, ROW_0)


def check_figures(row: Row, samples: int) -> None:
    assert row.state == MEASURED, row
    assert set(row.figures) <= set(FIGURES)
    assert all(math.isfinite(value) for value in row.figures.values())
    assert row.figures["step_samples"] == samples
    assert row.figures["step_p95_over_median"] >= 1
    assert row.figures["frames_per_s"] == pytest.approx(4 / row.figures["clip_hot_s"], rel=1e-5)
    assert sum(row.figures[stage] for stage in STAGES) == pytest.approx(row.figures["clip_hot_s"], rel=1e-5)
    assert row.figures["host_peak_gib"] > 0.1


def test_row_0_is_kept_for_the_others(reference: Row, job: Job) -> None:
    check_figures(reference, 3)
    assert "latents_cosine" not in reference.figures
    assert reference_path(job).is_file()


def test_our_loop_makes_the_clip_of_row_0(reference: Row, make_order: MakeOrder, job: Job) -> None:
    row = climb(make_order, EAGER)
    check_figures(row, 3)
    assert row.figures["latents_cosine"] == pytest.approx(1, abs=1e-9)
    assert row.figures["frames_psnr_worst_db"] > 90
    assert row.figures["frames_ssim_mean"] == pytest.approx(1, abs=1e-6)
    assert row.figures["core_tflop"] > 0
    assert (job.work_folder / "videos" / "eager.mp4").stat().st_size > 500
    warm = climb(make_order, EAGER, "warm")
    assert "load_s" not in warm.figures, "eager PyTorch has no engine to load"
    assert warm.figures["warm_encode_s"] < row.figures["encode_cold_s"], "conditioning comes from the cache"


def test_a_row_without_row_0_says_so(make_order: MakeOrder) -> None:
    row = climb(make_order, EAGER)
    check_figures(row, 3)
    assert row.notes == ("It was not compared with row 0, which has made no clip of this job here.",)
    assert "latents_cosine" not in row.figures


def test_an_unknown_backend_fails_its_row_alone(make_order: MakeOrder) -> None:
    row = climb(make_order, Variant("odd", "Odd", ENGINES, "fp32", 1, backend="odd"))
    assert row.state in (MISSING, INCOMPLETE)
    assert "InputError: The backend is one of" in row.reason
    assert "Traceback" in row.trace


@pytest.mark.parametrize("what", ["sample_ms", "count_kernels", "host_peaks"])
def test_a_figure_that_cannot_be_had(make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """What was measured before is kept, and what comes after where it can do without."""

    def fail(*_: Any) -> None:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(child, what, fail)
    row = climb(make_order, EAGER)
    assert row.state == (MEASURED if what == "count_kernels" else INCOMPLETE)
    assert any("RuntimeError: out of luck" in text and "more" not in text for text in (*row.notes, row.reason))
    assert row.figures["clip_hot_s"] > 0
    assert ("step_ms" in row.figures) == (what != "sample_ms")


def test_a_slow_row_0_makes_one_clip(make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "HOT_SECONDS", 0.0)
    row = climb(make_order, ROW_0)
    check_figures(row, samples=2)
    assert row.notes == ("Its one clip came after one step to warm up, and is its hot one too.",)


def test_an_order_comes_through_json(make_order: MakeOrder) -> None:
    order = make_order(Variant("a", "A", ENGINES, "fp16", 1.5, "inductor", ("x", "y"), headline=True), "warm")
    assert order_from_json(order.to_json()) == order


@pytest.mark.slow
def test_a_compiled_engine(reference: Row, make_order: MakeOrder) -> None:
    variant = Variant("onnxruntime", "ONNX Runtime", ENGINES, "fp32", 6, "onnxruntime")
    row = climb(make_order, variant)
    check_figures(row, 3)
    assert row.figures["build_s"] > 1
    assert row.figures["latents_snr_db"] > 70
    warm = climb(make_order, variant, "warm")
    assert 0 < warm.figures["load_s"] < row.figures["build_s"]
    again = climb(make_order, variant)
    assert any("were there already" in note for note in again.notes)
    assert again.figures["build_s"] < row.figures["build_s"]
    beside = climb(make_order, replace(variant, name="beside", rewrites=()))
    check_figures(beside, 3)
    assert beside.figures["latents_snr_db"] == row.figures["latents_snr_db"], "no rewrites is what this backend has"


def test_another_job_has_another_reference(job: Job, tmp_path: Path) -> None:
    data = json.loads(json.dumps(job.__dict__))
    assert Job(**{**data, "steps": 3}).digest != job.digest
    assert Job(**{**data, "chunk": 2, "work": str(tmp_path), "device": "cuda:0"}).digest == job.digest

"""Rows and the sweep are really measured, in this process and at a tiny size; and what goes wrong."""

import json
import math
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import child, sweep
from i2v_tensorrt.benchmarks.ladder.child import main
from i2v_tensorrt.benchmarks.ladder.job import Job
from i2v_tensorrt.benchmarks.ladder.order import Order, order_from_json
from i2v_tensorrt.benchmarks.ladder.reference import reference_path
from i2v_tensorrt.benchmarks.ladder.row import FIGURES, INCOMPLETE, MEASURED, MISSING, Row, read_row
from i2v_tensorrt.benchmarks.ladder.sweep import SWEEP_FILE, Place, Sweep, places, read_points, run_sweep
from i2v_tensorrt.benchmarks.ladder.variants import ENGINES, REFERENCE, STOCK, Variant
from i2v_tensorrt.pipeline.dummies.dynamicrafter import write_tiny_dynamicrafter

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


def test_our_loop_makes_the_clip_of_row_0(reference: Row, make_order: MakeOrder, job: Job) -> None:
    check_figures(reference, 3)
    assert "latents_cosine" not in reference.figures
    assert reference_path(job).is_file(), "it is kept for the others"
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


def test_what_comes_after_the_clip_is_measured_by_engine_rows_where_it_is_asked_for(make_order: MakeOrder) -> None:
    def after(variant: Variant, kind: str = "row") -> Order:
        return replace(make_order(variant, kind), after_clip=True)

    assert "interpolate_s" not in climb(after, ROW_0).figures, "diffusers has no such stage"
    row = climb(after, EAGER)
    check_figures(row, 3)
    assert row.figures.get("interpolate_s", 0) > 0, row.notes
    if find_spec("spandrel"):
        assert row.figures["upscale_s"] > 0
    else:
        assert any("spandrel" in note for note in row.notes) and "upscale_s" not in row.figures


@pytest.mark.slow
def test_dynamicrafter_is_compared_with_diffusers_modules(make_order: MakeOrder, job: Job, tmp_path: Path) -> None:
    folder = write_tiny_dynamicrafter(tmp_path / "dynamicrafter")
    clip = replace(job, folder=str(folder), num_frames=16, steps=2, guidance_scale=7.5)

    def order(variant: Variant, kind: str = "row") -> Order:
        return replace(make_order(variant, kind), job=clip, samples=1)

    assert climb(order, ROW_0).state == MEASURED
    row = climb(order, EAGER)
    assert row.state == MEASURED, row
    assert row.figures["latents_cosine"] == pytest.approx(1, abs=1e-9)
    assert row.figures["frames_psnr_worst_db"] > 90


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


def test_an_order_comes_through_json_and_another_job_has_another_reference(
    make_order: MakeOrder, job: Job, tmp_path: Path
) -> None:
    order = make_order(Variant("a", "A", ENGINES, "fp16", 1.5, "inductor", ("x", "y"), headline=True), "warm")
    assert order_from_json(order.to_json()) == order
    data = json.loads(json.dumps(job.__dict__))
    assert Job(**{**data, "steps": 3}).digest != job.digest
    assert Job(**{**data, "chunk": 2, "work": str(tmp_path), "device": "cuda:0"}).digest == job.digest


def test_the_published_job_has_the_published_places(job: Job) -> None:
    found = places(replace(job, width=512, height=512, num_frames=16, steps=50))
    by_axis = {axis: [place.label for place in found if place.axis == axis] for axis in ("frames", "size", "steps")}
    assert by_axis["frames"] == [f"{count} frames" for count in (8, 16, 24, 32, 48, 64)]
    assert by_axis["size"][0] == "256x256" and by_axis["size"][-1] == "1024x1024"
    assert by_axis["steps"] == [f"{count} steps" for count in (10, 20, 30, 40, 50)]


def test_every_place_is_measured(make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    order = make_order(EAGER, "sweep")
    job = order.job
    few = [
        Place("frames", "2 frames", replace(job, num_frames=2)),
        Place("frames", "4 frames", job),
        Place("size", "128x64", replace(job, width=128)),
        Place("steps", "1 steps", replace(job, steps=1)),
        Place("size", "24x24", replace(job, width=24, height=24)),
    ]
    monkeypatch.setattr(sweep, "places", lambda job: few)
    told: list[str] = []
    assert run_sweep(order, told.append) == 0
    points = read_points(order.rows / SWEEP_FILE)
    assert [point["label"] for point in points] == [place.label for place in few]
    assert len(told) == len(few)
    frames, twice, wide = points[:3]
    assert 1.7 < twice["tflop"] / frames["tflop"] < 2.1, "work grows with frames"
    assert 1.9 < wide["tflop"] / twice["tflop"] < 2.5, "and faster than pixels"
    assert frames["step_ms"] > 0 and frames["peak_gib"] is None
    assert points[3]["denoise_s"] > 0


def test_where_memory_ends_is_said_and_ends_its_axis(make_order: MakeOrder, monkeypatch: pytest.MonkeyPatch) -> None:
    def call(self: Sweep, job: Job) -> dict[str, Any]:
        if job.num_frames > 4:
            raise torch.cuda.OutOfMemoryError("full")
        return {"step_ms": 1.0, "tflop": 1.0, "peak_gib": None}

    monkeypatch.setattr(Sweep, "_call", call)
    monkeypatch.setattr(Sweep, "_steps", lambda self, job: {"denoise_s": 1.0})
    monkeypatch.setattr(Sweep, "_memory_gib", lambda self: 8.0)
    order = make_order(EAGER, "sweep")
    run_sweep(order, lambda text: None)
    reasons = {point["label"]: point.get("reason") for point in read_points(order.rows / SWEEP_FILE)}
    assert reasons["4 frames"] is None and reasons["64x64"] is None
    assert reasons["6 frames"] == "Memory ends here: the GPU has 8 GiB."
    assert reasons["16 frames"] == "Left out: 6 frames was too much already."

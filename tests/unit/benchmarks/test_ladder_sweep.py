"""The sweep measures each place, and says where memory ends."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import sweep
from i2v_tensorrt.benchmarks.ladder.job import Job
from i2v_tensorrt.benchmarks.ladder.sweep import SWEEP_FILE, Place, Sweep, places, read_points, run_sweep
from i2v_tensorrt.benchmarks.ladder.variants import ENGINES, Variant

from .conftest import MakeOrder

EAGER = Variant("eager", "eager PyTorch", ENGINES, "fp32", 4)


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

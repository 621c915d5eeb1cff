"""A small job over the tiny checkpoint, and documents without any run."""

from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks.ladder.document import Document
from i2v_tensorrt.benchmarks.ladder.job import Job
from i2v_tensorrt.benchmarks.ladder.order import Order
from i2v_tensorrt.benchmarks.ladder.row import MEASURED, Row
from i2v_tensorrt.benchmarks.ladder.variants import Variant

MakeOrder = Callable[..., Order]


@pytest.fixture
def job(tiny_folder: Path, tmp_path: Path) -> Job:
    size = {"width": 64, "height": 64, "num_frames": 4, "fps": 8, "steps": 2, "chunk": 4}
    places = {"folder": str(tiny_folder), "work": str(tmp_path / "work"), "device": "cpu"}
    return Job(model="tiny", guidance_scale=9.0, seed=1, prompt="a red boat", **size, **places)


@pytest.fixture
def make_order(job: Job) -> MakeOrder:
    def make(variant: Variant, kind: str = "row") -> Order:
        return Order(kind, job, variant, job.work_folder / "rows", 3, started_at=0.0, began_at=0.0)

    return make


@pytest.fixture
def document(job: Job) -> Document:
    """A ladder of four rows with figures as a GPU would give them, and one that could not run."""
    found = Document(
        job, {"gpu": "A GPU", "driver": "1.2"}, {"torch": "2.11.0+cu130"}, "abc", "2026-11-20T00:00:00", {}
    )
    rows = {
        "diffusers-fp32": 80.0,
        "eager": 10.0,
        "compile-default": 8.0,
        "compile-default-graph": 6.4,
        "inductor": 5.0,
    }
    for name, seconds in rows.items():
        stages = {"denoise_s": 0.9 * seconds, "decode_s": 0.06 * seconds, "write_s": 0.03 * seconds}
        figures = {**stages, "encode_s": 0.01 * seconds, "clip_hot_s": seconds, "step_ms": 18 * seconds}
        found.rows[name] = Row(name, f"{name}, a title", MEASURED, figures=figures)
    found.rows["tensorrt"] = Row("tensorrt", "TensorRT", reason="TensorRT is not here.")
    return found

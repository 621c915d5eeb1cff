"""`run.py bench scratch` without a GPU: what it would measure, and the figures that are kept."""

import json
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.benchmarks import scratch
from i2v_tensorrt.benchmarks.scratch import DENOISER_SIZES, RESULTS, measure_model, sizes_of
from i2v_tensorrt.pipeline.dummies.full_size import FULL_SIZES
from i2v_tensorrt.pipeline.models.registry import open_model


def test_every_component_has_rows_and_a_failure_is_one(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scratch, "PICTURE_SIZES", ((64, 64, 1, 1),))
    for name in ("synchronize", "reset_peak_memory_stats", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 5 << 20)
    model = open_model(tiny_folder)
    rows = list(measure_model(model, [(64, 64, 2, 2)], torch.device("cpu")))
    assert {row["component"] for row in rows} == set(model.components)
    assert [row["precision"] for row in rows if row["component"] == "core"] == ["fp16", "fp32"]
    assert all(row.get("peak_mib", 5) == 5 and ("peak_mib" in row) != ("error" in row) for row in rows)


def test_the_sizes_are_those_of_the_checkpoints_and_the_kept_figures_hold_each_core() -> None:
    assert set(DENOISER_SIZES) == set(FULL_SIZES)
    sizes = {"batch": 2, "frames": 25, "chunk": 25, "latent_height": 72, "latent_width": 128}
    assert sizes_of((1024, 576, 25, 2)) == sizes
    rows = json.loads(RESULTS.read_text("utf-8"))["rows"]
    assert {row["family"] for row in rows if row["component"] == "core" and row["peak_mib"]} == {"i2vgen_xl", "svd"}

"""`run.py bench sizes` and `scratch`: the weights and the memory that they count, and that what is kept is that."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.benchmarks import scratch
from i2v_tensorrt.benchmarks.full_models import PUBLISHED, Published, full_model
from i2v_tensorrt.benchmarks.scratch import DENOISER_SIZES, measure_model, sizes_of
from i2v_tensorrt.benchmarks.sizes import CARDS_GIB, CONTEXT_BYTES, CPU, GIB, RESULTS, page, rows_of
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.pipeline.dummies.full_size import FULL_SIZES
from i2v_tensorrt.pipeline.models.registry import open_model

PARAMETERS = {
    "I2VGen-XL": {"core": 1.42e9, "text_encoder": 0.354e9},
    "SVD-XT": {"core": 1.52e9},
    "Wan 2.2 TI2V-5B": {"core": 5.0e9, "text_encoder": 5.68e9},
    "Wan 2.1 I2V 14B": {"core": 16.4e9, "text_encoder": 5.68e9, "image_encoder": 0.63e9},
    "Wan 2.2 I2V A14B": {"core": 14.3e9, "core_late": 14.3e9},
}
"""As published, where the whole of a part counts for each component of it."""
each_model = pytest.mark.parametrize("published", PUBLISHED, ids=[each.title for each in PUBLISHED])


@each_model
def test_the_figures_that_are_kept_are_those_of_the_budgets(published: Published, tmp_path: Path) -> None:
    if not BACKENDS["inductor"].availability(CPU).ok:
        pytest.skip("Inductor has no compiler here")
    model = full_model(published, tmp_path / "tiny")
    for component, parameters in PARAMETERS[published.title].items():
        assert model.size_bytes(component, "fp16") / 2 == pytest.approx(parameters, rel=0.02)
    rows = [asdict(row) for row in rows_of(published, model, tmp_path / "engines")]
    kept = [row for row in json.loads(RESULTS.read_text("utf-8"))["rows"] if row["model"] == published.title]
    assert rows == kept
    for row in rows:
        assert row["card_gib"] in CARDS_GIB
        assert row["made"] is None or row["card_gib"] > row["weights_gib"]
    largest_gib = max(rows[0]["weights_gib"], rows[0]["encoder_gib"])
    assert [row["card_gib"] for row in rows if row["made"]] == [
        each for each in CARDS_GIB * 2 if each - CONTEXT_BYTES / GIB > largest_gib
    ]


def test_the_kept_page_is_that_of_the_kept_rows() -> None:
    rows = json.loads(RESULTS.read_text("utf-8"))["rows"]
    assert RESULTS.with_suffix(".md").read_text("utf-8").rstrip() == page(rows)
    assert {row["model"] for row in rows} == set(PARAMETERS)


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
    rows = json.loads(scratch.RESULTS.read_text("utf-8"))["rows"]
    assert {row["family"] for row in rows if row["component"] == "core" and row["peak_mib"]} == {"i2vgen_xl", "svd"}

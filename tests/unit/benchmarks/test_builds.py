"""The benchmark of builds: what it measures and writes, at the tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks import builds
from i2v_tensorrt.benchmarks.builds import CASES, Case, main
from i2v_tensorrt.runtime.engines.policy import SHAPE_POLICIES
from i2v_tensorrt.runtime.engines.presets import parse_presets


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    cases = (Case("image_encoder", "onnxruntime", "exact", "64x64x4"), Case("core", "tensorrt", "exact", "72x64x4"))
    monkeypatch.setattr(builds, "CASES", cases)


def test_a_build_is_measured_and_written_in_its_place(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert main(["--model", str(tiny_folder), "--out", str(tmp_path), "--only", "image_encoder"]) == 0
    ((name, row),) = json.loads((tmp_path / "builds.json").read_text("utf-8"))["rows"].items()
    assert name == "image_encoder onnxruntime exact 64x64x4"
    assert row["cosine"] > 0.99999
    assert row["peak_memory_bytes"] > row["size_bytes"] > 0 < row["build_s"]
    assert row["activation_bytes"] is None
    assert "| image_encoder | onnxruntime | exact 64x64x4 |" in (tmp_path / "builds.md").read_text("utf-8")
    assert "image_encoder" in capsys.readouterr().out


def test_one_that_cannot_be_built_is_told_and_not_written(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--list", "--only", "core"]) == 0
    assert capsys.readouterr().out == "core tensorrt exact 72x64x4\n"
    assert main(["--model", str(tiny_folder), "--out", str(tmp_path), "--only", "core"]) == 1
    assert "core tensorrt exact 72x64x4: No engine can serve this size" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_is_one_that_the_policies_know(case: Case) -> None:
    assert case.shapes in SHAPE_POLICIES
    assert parse_presets(case.sizes)

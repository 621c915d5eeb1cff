"""The report of the GPU suite: both files say the same, and the one for people can be read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from ...helpers.gpu_report import Case, Report, driver, versions

REPORT = Report(
    {"gpu": "Some GPU", "packages": {"torch": "2.13.0", "onnx": "1.23.2"}},
    [
        Case("test_speed[eager]", "passed", 1.25, figures={"median_ms": 3.5}),
        Case("test_speed[tensorrt]", "skipped", 0.0, "TensorRT is missing."),
        Case("test_gate[tensorrt]", "skipped", 0.0, "TensorRT is missing."),
        Case("test_gate[inductor]", "failed", 2.0, "line\n" * 100 + "the last word"),
    ],
)


def test_both_files_hold_every_case(tmp_path: Path) -> None:
    path = REPORT.write(tmp_path / "out")
    assert sorted(each.name for each in path.parent.iterdir()) == ["gpu-report.json", "gpu-report.txt"]
    assert json.loads((path.parent / "gpu-report.json").read_text("utf-8")) == asdict(REPORT)
    lines = path.read_text("utf-8").splitlines()
    assert lines[0].split() == ["gpu", "Some", "GPU"]
    assert "torch 2.13.0, onnx 1.23.2" in lines[1]
    assert [line.split()[0] for line in lines[3:6]] == ["passed", "median_ms:", "failed"]
    assert lines[-2].strip() == "the last word"
    assert lines[-1].split() == ["skipped", "2", "x", "TensorRT", "is", "missing."]
    assert len(lines) < 50


def test_versions_are_those_that_are_installed() -> None:
    found = versions()
    assert "torch" in found
    assert all(found.values())


def test_a_driver_without_its_program_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert driver().startswith("unknown")

"""What `run.py bench live` asks a server for, and the file that it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks import cards, live, scratch
from i2v_tensorrt.benchmarks.live import FULL_SIZE, NAMES, Report, opening, prompt_of
from i2v_tensorrt.common.workflow_names import QUICK_START, api_workflow


def test_the_quick_start_is_the_workflow_as_it_ships() -> None:
    shipped = json.loads(api_workflow(QUICK_START).read_text("utf-8"))
    assert prompt_of(seed=shipped["5"]["inputs"]["seed"]) == shipped
    full = prompt_of(FULL_SIZE, seed=3)
    assert full["2"]["inputs"]["checkpoint"] == live.FULL
    assert (full["4"]["inputs"]["width"], full["5"]["inputs"]["steps"], full["5"]["inputs"]["seed"]) == (512, 50, 3)
    assert full["3"] == shipped["3"]
    kinds = {node["class_type"] for node in opening().values()}
    assert kinds == {"I2VTRT_ModelLoader", "I2VTRT_EngineLoader", "PreviewAny"}, "opening runs no network"


@pytest.mark.parametrize("benchmark", [live, cards, scratch])
def test_without_a_gpu_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], benchmark: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(benchmark, "find_comfyui", lambda: object(), raising=False)
    assert benchmark.main(["--out", str(tmp_path / "found.json")]) == 1
    assert "no CUDA GPU was found" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("before", [None, "damaged", '{"quick_start_s": 9.0, "live_passed": 480}'])
def test_figures_join_those_that_are_there_and_what_was_not_run_is_null(tmp_path: Path, before: str | None) -> None:
    path = tmp_path / "gpu" / "figures.json"
    if before is not None:
        path.parent.mkdir()
        path.write_text(before, "utf-8")
    report = Report(path)
    report.note(quick_start_s=1.23456, bundled_build_s=None)
    found = json.loads(path.read_text("utf-8"))
    assert found["quick_start_s"] == 1.235
    assert set(NAMES) <= set(found)
    assert found["live_passed"] == (480 if before and before.startswith("{") else None)
    assert found["free_s"] is None
    assert [each.name for each in path.parent.iterdir()] == ["figures.json"]


def test_words_stand_beside_the_figures(tmp_path: Path) -> None:
    report = Report(tmp_path / "figures.json")
    report.note(free_s=0.1, free_lines=("freed",))
    report.note(built=["core"])
    assert json.loads((tmp_path / "live.json").read_text("utf-8")) == {"free_lines": ["freed"], "built": ["core"]}
    assert json.loads((tmp_path / "figures.json").read_text("utf-8")) == {**dict.fromkeys(NAMES), "free_s": 0.1}


def test_live_tests_are_counted_and_what_could_not_begin_has_failed() -> None:
    from i2v_tensorrt.tests.live.conftest import live_figures

    stats: dict[str, list[object]] = {"passed": [1, 2, 3], "skipped": [4], "failed": [5], "error": [6, 7], "": [8]}
    assert live_figures(stats) == {"live_passed": 3, "live_failed": 3}
    assert live_figures({}) == {"live_passed": 0, "live_failed": 0}

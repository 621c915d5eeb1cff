"""The benchmark of two GPUs, on tiny checkpoints: its rows, its figures, and how a failure is told."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks import two_gpu_rows, two_gpus
from i2v_tensorrt.benchmarks.figures import SCALE
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ...helpers.second_device import SmallRoom

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy


def run(folder: Path, *more: str) -> int:
    places = [f"--{name}={folder / name}" for name in ("checkpoints", "store", "out")]
    return two_gpus.main(["--tiny", "--samples=1", "--rounds=1", "--backend=eager", *places, *more])


def rows(folder: Path) -> dict[str, dict[str, object]]:
    return json.loads((folder / "out" / "two_gpus.json").read_text("utf-8"))["rows"]


def test_each_case_has_a_figure_of_its_own() -> None:
    figures = [case.figure for case in two_gpu_rows.CASES.values()]
    assert len(set(figures)) == len(figures)
    assert set(figures) < set(SCALE)


def test_branches_on_two_devices(tmp_path: Path) -> None:
    assert run(tmp_path, "--rows=svd") == 0
    row = rows(tmp_path)["svd"]
    assert row["two_ran"] == "eager, fp32 on cpu and cpu"
    assert row["ratio"] == pytest.approx(row["one_ms"][0] / row["two_ms"][0])  # type: ignore[index]
    assert row["likeness"]["latents_cosine"] > 0.999999  # type: ignore[index]
    assert not (tmp_path / "out" / "figures.json").exists(), "tiny models give no figures"


@pytest.mark.slow
def test_tokens_on_two_devices_and_a_clip(tmp_path: Path) -> None:
    assert run(tmp_path, "--rows=wan-guided,wan,four-steps") == 0
    found = rows(tmp_path)
    assert found["wan-guided"]["two_ran"] == "eager, fp32 on cpu and cpu"
    for name in ("wan", "four-steps"):
        assert found[name]["two_ran"] == "eager, fp32 on cpu and 1 more"
        assert found[name]["likeness"]["latents_cosine"] > 0.999999  # type: ignore[index]
    assert found["wan"]["exchange"]["64 KB"]["us"] > 0  # type: ignore[index]


def test_two_devices_that_became_one_are_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = two_gpu_rows._engines
    sets: list[EngineSet] = []

    def full(*given: Any) -> EngineSet:
        sets.append(made(*given))
        if len(sets) == 2:
            sets[1].runners._memory_manager = SmallRoom(error=torch.OutOfMemoryError("CUDA out of memory."))
        return sets[-1]

    monkeypatch.setattr(two_gpu_rows, "_engines", full)
    assert run(tmp_path, "--rows=svd") == 1
    row = rows(tmp_path)["svd"]
    assert row == {
        "error": "EngineError: Expected two devices, found one: Memory ran out on the second device, cpu: the clip "
        "goes on with one device."
    }


def test_without_two_gpus_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    if torch.cuda.device_count() > 1:
        pytest.skip("two GPUs are here")
    assert two_gpus.main([f"--out={tmp_path}"]) == 1
    assert "found" in capsys.readouterr().err
    assert two_gpus.main(["--rows=hunyuan"]) == 2
    assert "expected rows among svd, i2vgen, wan-guided, wan, four-steps, found hunyuan" in capsys.readouterr().err


def test_a_row_is_added_to_those_that_are_there(tmp_path: Path) -> None:
    options = argparse.Namespace(out=tmp_path, commit="test", tiny=False)
    devices = torch.device("cpu"), torch.device("cpu")
    two_gpus._write("svd", {"ratio": 1.94321}, devices, options)
    two_gpus._write("wan", {"error": "EngineError: no room"}, devices, options)
    assert set(json.loads((tmp_path / "two_gpus.json").read_text("utf-8"))["rows"]) == {"svd", "wan"}
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    assert figures["svd_ratio"] == 1.943
    assert figures["wan_ratio"] is None

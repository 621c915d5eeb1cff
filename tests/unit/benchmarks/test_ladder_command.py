"""The command line: what it refuses, what it lists, and one ladder from end to end."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks.command import main
from i2v_tensorrt.benchmarks.command import main as bench
from i2v_tensorrt.benchmarks.ladder.command import parser

Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, tiny_folder: Path) -> Run:
    def run_ladder(*options: str) -> int:
        places = ["--work", str(tmp_path / "work"), "--out", str(tmp_path / "out")]
        size = ["--size", "64x64", "--frames", "4", "--steps", "2", "--step-samples", "2"]
        return main(["ladder", "--model", str(tiny_folder), *size, *places, *options])

    return run_ladder


def test_the_list_says_which_rows_there_are(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--list") == 0
    told = capsys.readouterr().out
    assert "diffusers-fp32" in told and "eager PyTorch, fp32" in told
    assert "TensorRT: TensorRT runs on NVIDIA GPUs" in told or "tensorrt" in told


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rows", "eager,odd"], "The rows here are diffusers-fp32, eager, "),
        (["--resume", "nowhere.json"], "Expected the JSON of an earlier run at nowhere.json"),
        (["--weights", "random"], "Weights are chosen for i2vgen-xl or svd-xt or dynamicrafter alone"),
        (["--sweep", "--sweep-row", "diffusers-fp32"], "The sweep runs one of eager"),
    ],
)
def test_what_is_refused_in_a_sentence(
    run: Run, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert run(*options) == 1
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("size", ["512", "512x", "ax512", "512*512"])
def test_a_size_that_is_none(size: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["--size", size])
    assert "expected a size such as 512x512" in capsys.readouterr().err


def test_without_time_every_row_says_so(run: Run, tmp_path: Path) -> None:
    assert run("--minutes", "0.05") == 0
    data = json.loads((tmp_path / "out" / "ladder.json").read_text("utf-8"))
    assert {row["state"] for row in data["rows"]} == {"missing"}
    reasons = {row["name"]: row["reason"] for row in data["rows"]}
    assert reasons["diffusers-fp32"].startswith("It was left out: ")


@pytest.mark.slow
def test_from_end_to_end_and_on(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--rows", "diffusers-fp32", "--no-warm") == 0
    assert run("--rows", "eager", "--resume", str(tmp_path / "out" / "ladder.json")) == 0
    data = json.loads((tmp_path / "out" / "ladder.json").read_text("utf-8"))
    rows = {row["name"]: row for row in data["rows"]}
    assert [rows[name]["state"] for name in ("diffusers-fp32", "eager", "compile-default")] == [
        "measured", "measured", "missing",
    ]  # fmt: skip
    eager = rows["eager"]
    assert eager["figures"]["latents_cosine"] == pytest.approx(1, abs=1e-9)
    assert eager["figures"]["clip_warm_start_s"] > 0 and eager["figures"]["clip_hot_s"] > 0
    assert eager["ratios"]["reference"] > 0
    assert set(eager["figures"]) <= set(data["figures"])
    assert data["versions"]["torch"] and data["machine"]["cores"] and data["job"]["digest"]
    assert (tmp_path / "out" / "ladder.png").is_file()
    assert "| eager PyTorch, fp32 |" in capsys.readouterr().out


def test_a_benchmark_that_is_not_there_is_told_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(["none"]) == 2
    assert "ladder" in capsys.readouterr().err

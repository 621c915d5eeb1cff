"""The benchmark of the presets, on tiny checkpoints: what it prepares, writes and leaves for the next call."""

import json
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks import fewer
from i2v_tensorrt.pipeline.acceleration.presets import PRESET_NAMES

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy


def arguments(folder: Path, *more: str) -> list[str]:
    names = {"--checkpoints": "checkpoints", "--store": "store", "--out": "out"}
    return ["--tiny", *(text for option, name in names.items() for text in (option, str(folder / name))), *more]


def rows_in(folder: Path, model: str) -> dict[str, fewer.Row]:
    return json.loads((folder / "out" / "fewer.json").read_text("utf-8"))["models"][model]["rows"]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["svd", "wan21"])
def test_a_model_alone_has_a_row_for_each_preset(
    tmp_path: Path, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    order = arguments(tmp_path, "--backend", "eager", "--rounds", "2", "--models", model)
    assert fewer.main(order) == 0
    rows, told = rows_in(tmp_path, model), capsys.readouterr().out
    assert list(rows) == list(PRESET_NAMES)
    made = [row["calls"] for row in rows.values()]
    assert made == sorted(made, reverse=True) and made[0] == rows["exact"]["asked"] > made[1]
    assert all(len(row["clips"]) == 2 and row["seconds"] > 0 for row in rows.values())
    assert all(f"{model}: {preset}: {row['seconds']:.3f} s" in told for preset, row in rows.items())
    assert fewer.UNTRAINED in told and "times as fast as exact" in told
    assert not (tmp_path / "out" / "figures.json").exists(), "tiny figures are no figures"


@pytest.mark.slow
def test_what_was_measured_is_kept_when_the_time_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    order = arguments(tmp_path, "--backend", "eager", "--models", "svd", "--rounds", "1")
    timed, made = fewer.timed_clip, []

    def slow(*given: object) -> dict[str, float]:
        made.append(given)
        if len(made) == 3:  # two clips that load, and the first that counts
            monkeypatch.setattr(fewer.time, "monotonic", lambda: 1e12)
        return timed(*given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(fewer, "timed_clip", slow)
    assert fewer.main([*order, "--presets", "exact,near"]) == 1
    assert "svd needs more --minutes" in capsys.readouterr().err
    assert list(rows_in(tmp_path, "svd")) == ["exact"]
    monkeypatch.undo()
    assert fewer.main([*order, "--presets", "near"]) == 0
    rows = rows_in(tmp_path, "svd")
    assert list(rows) == ["exact", "near"] and rows["near"]["calls"] < rows["exact"]["calls"]


@pytest.mark.torture
def test_engines_are_prepared_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    order = arguments(tmp_path, "--backend", "onnxruntime", "--models", "svd", "--presets", "near", "--rounds", "1")
    assert fewer.main([*order, "--prepare"]) == 0
    built = capsys.readouterr().out
    assert "building" in built and not (tmp_path / "out").exists()
    assert fewer.main(order) == 0
    told = capsys.readouterr().out
    assert "building" not in told and rows_in(tmp_path, "svd")["near"]["engine"] == "onnxruntime, fp32 on cpu"


def test_flat_figures_are_named_for_the_model() -> None:
    rows = {"near": {"seconds": 2.0}, "real time": {"seconds": 1.0}}
    assert fewer.flat_figures("svd", rows) == {"svd_near_s": 2.0, "svd_real_time_s": 1.0}
    assert fewer.flat_figures("i2vgen", rows) == {"near_s": 2.0, "real_time_s": 1.0}


def test_another_model_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert fewer.main(["--models", "svd,other"]) == 2
    assert "expected models among i2vgen, svd, wan21, found 'other'" in capsys.readouterr().err


def test_the_fastest_preset_is_compared_with_exact_even_where_it_is_slower(capsys: pytest.CaptureFixture[str]) -> None:
    fewer._compare("svd", {"exact": {"seconds": 1.0}, "near": {"seconds": 2.0}, "fast": {"seconds": 1.25}})
    assert capsys.readouterr().out == "svd: fast is 0.80 times as fast as exact\n"
    fewer._compare("svd", {"near": {"seconds": 2.0}})
    fewer._compare("svd", {"exact": {"seconds": 2.0}})
    assert capsys.readouterr().out == ""

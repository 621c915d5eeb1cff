"""The benchmark of DynamiCrafter: what it counts, what it keeps, and its rows over a tiny checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks import dynamicrafter, dynamicrafter_checks
from i2v_tensorrt.benchmarks.dynamicrafter_rows import Eager, Ours, Row, Setting, likeness
from i2v_tensorrt.benchmarks.figures import DYNAMICRAFTER
from i2v_tensorrt.pipeline.dummies.dynamicrafter import write_tiny_dynamicrafter

from ...helpers.toys import CPU

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy


def report(folder: Path, *options: str) -> dynamicrafter.Report:
    where = ["--tiny", "--work", str(folder), "--out", str(folder / "out"), "--commit", "abc"]
    return dynamicrafter.Report(dynamicrafter.parser().parse_args([*where, *options]))


def written(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "out" / name).read_text("utf-8"))


def test_figures_are_means_of_rounds_and_the_best_mode_of_torch_compile() -> None:
    rows: dict[str, dict[str, Any]] = {
        "ours@1024": {"rounds_ms": [200.0, 220.0], "clip_s": 12.0},
        "ours@512": {"rounds_ms": [60.0], "clip_s": 4.0},
        "compile@1024": {"rounds_ms": [300.0]},
        "compile-max@1024": {"rounds_ms": [290.0]},
        "compile-max@512": {"rounds_ms": [9.0]},
        "fp32@1024": {"title": "failed", "rounds_ms": []},
    }
    found = dynamicrafter.flat_figures(rows)
    assert found == {"ours_1024_ms": 210.0, "compile_1024_ms": 290.0, "clip_1024_s": 12.0, "clip_512_s": 4.0}
    assert set(found) < set(DYNAMICRAFTER)


def test_every_figure_is_on_disk_at_once_and_earlier_rows_stay(tmp_path: Path) -> None:
    first = report(tmp_path)
    first.add_round("ours@1024", {"step_ms": 200.0})
    assert written(tmp_path, "figures.json") == {**dict.fromkeys(DYNAMICRAFTER), "ours_1024_ms": 200.0}
    first.add_round("ours@1024", {"step_ms": 300.0})
    assert written(tmp_path, "figures.json")["ours_1024_ms"] == 250.0
    second = report(tmp_path)
    second.add_round("fp32@1024", {})
    second.check("parity", {"core": 2e-6}, parity_max=2e-6)
    document = written(tmp_path, "calls.json")
    assert document["rows"]["ours@1024"]["rounds_ms"] == [200.0, 300.0] and document["parity"]["core"] == 2e-6
    assert document["rows"]["ours@1024"]["commit"] == "abc"
    assert not second.has("fp32@1024"), "a row that failed"
    figures = written(tmp_path, "figures.json")
    assert (figures["ours_1024_ms"], figures["parity_max"], figures["fp32_1024_ms"]) == (250.0, 2e-6, None)


@pytest.mark.parametrize("wrong", [["--rows", "ours,mine"], ["--sizes", "513"]])
def test_unknown_names_are_refused(wrong: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert dynamicrafter.main(wrong) == 2
    assert "expected names of the help, found" in capsys.readouterr().err


def test_likeness_is_of_the_references_range() -> None:
    reference = torch.tensor([-1.0, 3.0])
    assert likeness(reference, reference + 0.04) == {
        "psnr_db": pytest.approx(40.0, abs=1e-4),
        "max_abs": pytest.approx(0.04, abs=1e-6),
    }


def test_a_schedule_that_breaks_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert dynamicrafter_checks.not_finite([1, 7, 30]) == []

    def broken(config: object, steps: int, scheduler: str, eta: float) -> torch.Tensor:
        return torch.tensor(float("nan") if eta and steps == 7 else 0.0)

    monkeypatch.setattr(dynamicrafter_checks, "_sampled", broken)
    found = dynamicrafter_checks.not_finite([1, 7, 30])
    assert "i2vgen_xl, ddim, leading, eta 1, 7 steps" in found
    assert len(found) == 2 * sum("ddim" in schedulers for _, schedulers in dynamicrafter_checks.FAMILIES.values())


@pytest.mark.slow
def test_the_networks_and_the_schedule_are_within_the_issues_bound() -> None:
    found = dynamicrafter_checks.parity()
    assert set(found) == {"core", "core_fused", "image_projection", "schedule"}
    assert 0 < max(found.values()) <= 1e-5


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Setting:
    folder = write_tiny_dynamicrafter(tmp_path_factory.mktemp("bench") / "checkpoint", "1024")
    store = folder.parent / "engines"
    return Setting(
        folder, dynamicrafter.TINY_SIZE, 2, samples=1, latent_steps=1, backend="eager", store=store, device=CPU
    )


@pytest.fixture
def one_warm_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("i2v_tensorrt.benchmarks.ladder.measure.WARM_UP_CALLS", 0)
    yield


@pytest.mark.slow
@pytest.mark.usefixtures("one_warm_up")
def test_rows_make_the_same_prediction_and_ours_a_clip(setting: Setting, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    rows: dict[str, Row] = {"fp32": Eager(setting), "ours": Ours(setting)}
    for name, row in rows.items():
        row.ready()
        assert row.answer("call", tmp_path / name)["step_ms"] > 0
    reference, found = (load_file(tmp_path / name)["result"] for name in rows)
    assert reference.shape == (2, 16, 4, 8, 8)
    assert likeness(reference, found)["psnr_db"] > 100
    clip = rows["ours"].answer("clip", tmp_path / "none")
    assert clip["clip_s"] == pytest.approx(clip["sample_s"] + clip["decode_s"]) and clip["steps"] == 2
    assert rows["ours"].answer("latents", tmp_path / "none")["latents_psnr_db"] > 100
    assert rows["fp32"].answer("clip", tmp_path / "none") == {}

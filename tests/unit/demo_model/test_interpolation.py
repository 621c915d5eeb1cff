"""Training of the interpolation network: exact truth, clips by the step alone, and a run that resumes exactly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.demo_model.training import interpolation, interpolation_clips
from i2v_tensorrt.demo_model.training.clips import HELD_OUT
from i2v_tensorrt.demo_model.training.interpolation_clips import FIRST_SEED, Pool, Triplets, moments, recoloured
from i2v_tensorrt.demo_model.training.interpolation_measure import blend, decibels, pairs
from i2v_tensorrt.demo_model.training.loop import Plan
from i2v_tensorrt.demo_model.training.measure import psnr
from i2v_tensorrt.demo_model.training.painting import Brush
from i2v_tensorrt.pipeline.filters.rife import warp

CPU = torch.device("cpu")


def pool(chunk: int = 2, chunks: int = 2, every: int = 2) -> Pool:
    return Pool(CPU, chunk, chunks, every, 0, Brush.on(CPU))


def drawn(count: int, pixels: int = 64) -> Triplets:
    clips = pool(12, 1)
    clips.at(0)
    return clips.draw(count, pixels, torch.Generator().manual_seed(5))


def test_both_pictures_warped_by_the_truth_are_the_one_between() -> None:
    found = drawn(24)
    for index, end in enumerate((found.first, found.second)):
        moved = warp(end, found.flow[:, 2 * index : 2 * index + 2])
        inside = found.sure * (found.flow.abs().amax((1, 2, 3)) > 0.2).float()[:, None, None, None]
        error = ((moved - found.between).abs() * inside).mean((1, 2, 3))
        still = ((end - found.between).abs() * inside).mean((1, 2, 3))
        assert inside.any() and error.sum() < 0.3 * still.sum()


def test_new_colours_keep_what_moves_where() -> None:
    found = drawn(8)
    changed = recoloured(found, torch.full((8, 6), 0.9))
    assert not torch.allclose(changed.between, found.between, atol=0.05)
    assert torch.equal(changed.flow, found.flow) and 0 <= changed.first.min() and changed.first.max() <= 1


def test_times_lie_between_and_gaps_within_a_clip() -> None:
    ends, time = moments(torch.rand(2000, 4, generator=torch.Generator().manual_seed(0)))
    assert ends.min() >= 0 and ends.max() <= interpolation_clips.FRAMES - 1
    assert 0 < time.min() and time.max() < 1 and 0.45 < (time == 0.5).float().mean() < 0.55
    assert 0.4 < (ends[:, 0] > ends[:, 1]).float().mean() < 0.6


def test_the_pool_follows_from_the_step() -> None:
    one, other = pool(), pool()
    for step in range(5):
        one.at(step)
    other.at(4)
    assert torch.equal(one.seeds, other.seeds) and torch.equal(one.near, other.near)
    assert one.seeds.tolist() == [FIRST_SEED + k for k in (4, 5, 6, 7)] and one.seeds.max() < HELD_OUT


def test_the_measure_of_the_truth_itself_is_perfect_and_blending_gets_worse_with_the_gap() -> None:
    found = {gap: decibels(blend, *pairs(gap, 12, CPU)).mean() for gap in (1, 6)}
    first, second, truth = pairs(6, 2, CPU)
    assert decibels(lambda a, _: truth[: len(a)], first, second, truth).tolist() == [100.0, 100.0]
    assert found[1] > found[6] + 10


def run(folder: Path, **options: object) -> dict[str, torch.Tensor]:
    plan = Plan(folder, 4, 2, 1e-3, warmup=1, **options)  # type: ignore[arg-type]
    network = interpolation.start()
    interpolation.train(network, plan, pool(), CPU, 64)
    return network.published()


def test_training_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i2v_tensorrt.demo_model.training.loop.LOG_EVERY", 2)
    whole = run(tmp_path / "whole")
    run(tmp_path / "halves", seconds=-1.0)
    halves = run(tmp_path / "halves")
    assert all(torch.equal(halves[name], value) for name, value in whole.items())
    fresh = interpolation.start().published()
    assert any(not torch.equal(fresh[name], value) for name, value in whole.items())


def test_the_command_leaves_weights_figures_curve_and_sheet(tmp_path: Path) -> None:
    small = ["--batch", "2", "--pixels", "64", "--chunk", "2", "--chunks", "1", "--clips", "3", "--steps", "2"]
    assert interpolation.main(["--device", "cpu", "--minutes", "9", "--out", str(tmp_path), *small]) == 0
    from safetensors.torch import load_file

    from i2v_tensorrt.pipeline.filters.rife import open_rife

    weights = load_file(tmp_path / "interpolation.safetensors")
    assert (tmp_path / "interpolation.safetensors").stat().st_size < 6_000_000
    network = open_rife(weights).float()
    figures = json.loads((tmp_path / "figures.json").read_text("utf-8"))
    first, second, truth = pairs(6, 3, CPU)
    with torch.no_grad():
        made = network(first, second, torch.full((3, 1, 1, 1), 0.5))
    assert figures["gap6_db"] == pytest.approx(float(psnr(made.clamp(0, 1), truth).mean()), abs=0.05)
    assert figures["step"] == 2 and (tmp_path / "curve.png").is_file() and (tmp_path / "sheet.png").is_file()

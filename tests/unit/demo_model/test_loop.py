"""The loop: a run that stops and resumes ends where one that never stopped does."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from i2v_tensorrt.demo_model.training.loop import COOLDOWN, Plan, Run
from i2v_tensorrt.demo_model.training.state import load_tensors, save_tensors


def run_to(folder: Path, steps: int, stop: int, compact: Path | None = None) -> Run:
    """Trains a toy until `stop` of `steps`."""
    torch.manual_seed(0)
    module = nn.Linear(5, 3)
    run = Run(Plan(folder, steps, 1, 1e-2, warmup=2, compact=compact), {"toy": module})

    def loss_of(step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        return module(torch.randn(4, 5, generator=torch.Generator().manual_seed(step))).square().mean()

    try:
        run.go(loss_of)
    except KeyboardInterrupt:
        run.save(folder)
    return run


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    whole = run_to(tmp_path / "whole", 12, 12)
    run_to(tmp_path / "halves", 12, 5)
    halves = run_to(tmp_path / "halves", 12, 12)
    assert halves.step == whole.step == 12
    for key, weight in whole.trained.items():
        assert torch.equal(weight, halves.trained[key])
        assert torch.equal(whole.ema[key], halves.ema[key])


def test_a_compact_copy_resumes_with_fresh_moments(tmp_path: Path) -> None:
    whole = run_to(tmp_path / "whole", 6, 6, compact=tmp_path / "copy")
    again = run_to(tmp_path / "copy", 12, 6)
    assert again.step == 6 and not again.moments()
    for key, weight in whole.trained.items():
        assert torch.allclose(weight, again.trained[key], atol=2e-3)


def test_a_crash_while_saving_leaves_the_former_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = run_to(tmp_path, 12, 4)
    kept = {key: weight.detach().clone() for key, weight in before.trained.items()}

    def fail(path: Path, text: str) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("i2v_tensorrt.demo_model.training.state.write_text", fail)
        with pytest.raises(OSError, match="disk full"):
            run_to(tmp_path, 12, 9)
    after = run_to(tmp_path, 12, 4)
    assert after.step == 4
    assert all(torch.equal(after.trained[key], value) for key, value in kept.items())


def test_the_rate_warms_up_stays_and_falls_to_zero(tmp_path: Path) -> None:
    run = Run(Plan(tmp_path, 100, 1, 1.0, warmup=10), {"toy": nn.Linear(1, 1)})
    rates = []
    for run.step in range(100):
        rates.append(run.rate())
    assert rates[0] == pytest.approx(0.1)
    assert all(rate == pytest.approx(1.0) for rate in rates[9 : int(100 * (1 - COOLDOWN)) + 1])
    assert all(b < a for a, b in zip(rates[60:], rates[61:], strict=False))
    assert rates[-1] < 0.03


def test_the_time_limit_ends_a_run(tmp_path: Path) -> None:
    module = nn.Linear(2, 1)
    run = Run(Plan(tmp_path, 10**9, 1, 1e-3, seconds=0.0), {"toy": module})
    run.go(lambda step: module(torch.ones(1, 2)).square().mean())
    state = json.loads((tmp_path / "state.json").read_text("utf-8"))
    assert state["step"] == run.step < 10**9
    assert math.isfinite(state["curve"][-1][1])


def test_tensors_survive_their_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("i2v_tensorrt.demo_model.training.state.SHARD_BYTES", 100)
    tensors = {f"part{k}": torch.randn(4, 4) for k in range(5)}
    names = save_tensors(tmp_path, "weights", tensors)
    assert len(names) == 5
    back = load_tensors(tmp_path, names)
    assert all(torch.equal(back[key], value) for key, value in tensors.items())

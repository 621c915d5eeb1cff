"""The accelerators around a function of a few numbers: what they call, and what they give in place of a call."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.acceleration.deep_cache import reuse_deep
from i2v_tensorrt.pipeline.acceleration.guidance import gate
from i2v_tensorrt.pipeline.acceleration.magnitudes import (
    Magnitudes,
    called_steps,
    magnitudes_file,
    measuring,
    read_magnitudes,
    write_magnitudes,
)
from i2v_tensorrt.pipeline.acceleration.presets import (
    ACCELERATIONS,
    PRESET_NAMES,
    Preset,
    changed,
    preset_of,
    resolve,
)
from i2v_tensorrt.pipeline.acceleration.quality import NOT_JUDGED, Quality, quality_line, write_quality
from i2v_tensorrt.pipeline.acceleration.schedule import plan_calls
from i2v_tensorrt.pipeline.acceleration.settings import (
    EXACT,
    Acceleration,
    ChangeCache,
    GuidanceGate,
    MagnitudeCache,
    Solver,
)
from i2v_tensorrt.pipeline.acceleration.step_cache import reuse_by_change, reuse_residual
from i2v_tensorrt.pipeline.denoising.guidance import BOTH, CONDITIONAL, Branches
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.models.registry import open_model

SCALE = 3.0
TIMESTEPS = (900.0, 700.0, 500.0, 300.0, 100.0)
SHAPE = (2, 4, 3, 3)


def combine(prediction: torch.Tensor) -> torch.Tensor:
    if len(prediction) == 1:
        return prediction[0]
    return prediction[0] + SCALE * (prediction[1] - prediction[0])


class Network:
    """Two branches that bend their input in different ways, and a list of their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, Branches]] = []

    def __call__(self, x: torch.Tensor, t: torch.Tensor, branches: Branches) -> torch.Tensor:
        self.calls.append((float(t), branches))
        return torch.stack([torch.sin(x * (1 + branch)) + t / 1000 for branch in branches])


def latents(seed: int = 0) -> list[torch.Tensor]:
    """An input for each timestep."""
    return list(torch.randn(len(TIMESTEPS), *SHAPE, generator=torch.Generator().manual_seed(seed)))


def run(denoise: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], seed: int = 0) -> list[torch.Tensor]:
    return [denoise(x, torch.tensor(t)) for x, t in zip(latents(seed), TIMESTEPS, strict=True)]


def guided(x: torch.Tensor, t: float) -> torch.Tensor:
    return combine(Network()(x, torch.tensor(t), BOTH))


def test_an_open_gate_changes_nothing() -> None:
    expected = [guided(x, t) for x, t in zip(latents(), TIMESTEPS, strict=True)]
    found = run(gate(Network(), combine, TIMESTEPS, reuse=True))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("reuse", [True, False])
def test_a_closed_gate_runs_one_branch(reuse: bool) -> None:
    network, x = Network(), latents()
    found = run(gate(network, combine, TIMESTEPS[1:3], reuse=reuse))
    assert network.calls == [(t, BOTH if t in TIMESTEPS[1:3] else CONDITIONAL) for t in TIMESTEPS]
    plain = Network()
    difference = plain(x[2], torch.tensor(TIMESTEPS[2]), BOTH)
    difference = difference[1] - difference[0]
    conditional = [plain(each, torch.tensor(t), CONDITIONAL)[0] for each, t in zip(x, TIMESTEPS, strict=True)]
    assert torch.equal(found[0], conditional[0])  # no difference yet
    later = conditional[4] + ((SCALE - 1) * difference if reuse else 0)
    torch.testing.assert_close(found[4], later)


def test_a_step_that_is_left_out_gets_the_last_residual() -> None:
    x, calls = latents(), []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(float(t))
        return guided(x, float(t))

    found = run(reuse_residual(denoise, (TIMESTEPS[0], TIMESTEPS[3])))
    assert calls == [TIMESTEPS[0], TIMESTEPS[3]]
    residual = guided(x[0], TIMESTEPS[0]) - x[0]
    torch.testing.assert_close(found[2], x[2] + residual)
    torch.testing.assert_close(found[4], x[4] + guided(x[3], TIMESTEPS[3]) - x[3])
    wrong = run(reuse_residual(denoise, (TIMESTEPS[0], TIMESTEPS[2])))  # off by one step
    assert (wrong[3] - found[3]).abs().max() > 0.1


def test_a_cache_by_change_calls_when_the_input_has_moved() -> None:
    start = torch.ones(SHAPE)
    inputs = [start, start * 1.1, start * 1.11, start * 1.12, start * 3]
    calls = []

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(float(t))
        return 2 * x

    cached = reuse_by_change(denoise, 0.1, ())
    found = [cached(x, torch.tensor(t)) for x, t in zip(inputs, TIMESTEPS, strict=True)]
    # The prediction moves by 2 for 1 of the input: 2 * 0.01 of 2.2 is below a tenth, 2 * 1.88 is not.
    assert calls == [TIMESTEPS[0], TIMESTEPS[1], TIMESTEPS[4]]
    torch.testing.assert_close(found[2], inputs[2] + (2 * inputs[1] - inputs[1]))
    calls.clear()
    every = reuse_by_change(denoise, 0.1, TIMESTEPS)
    assert [every(x, torch.tensor(t)) for x, t in zip(inputs, TIMESTEPS, strict=True)] and calls == list(TIMESTEPS)


class Deep:
    """A network in two parts: deep features of the input, and what the shallow part makes of both."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def features(self, x: torch.Tensor, t: float, branches: Branches) -> torch.Tensor:
        return torch.stack([torch.cos(x * (2 + branch)) * t for branch in branches])

    def whole(self, x: torch.Tensor, t: torch.Tensor, branches: Branches) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls.append("whole")
        deep = self.features(x, float(t), branches)
        return x + deep, deep

    def shallow(self, x: torch.Tensor, t: torch.Tensor, branches: Branches, deep: torch.Tensor) -> torch.Tensor:
        self.calls.append("shallow")
        assert len(deep) == len(branches)
        return x + deep


def test_deep_features_are_those_of_the_last_whole_call_and_of_the_branch() -> None:
    network, x = Deep(), latents()
    predict = reuse_deep(network.whole, network.shallow, TIMESTEPS[::3])
    asked = (BOTH, BOTH, CONDITIONAL, CONDITIONAL, BOTH)
    found = [predict(each, torch.tensor(t), on) for each, t, on in zip(x, TIMESTEPS, asked, strict=True)]
    # The fourth refreshes the conditional branch alone, so that the fifth has nothing to take for both.
    assert network.calls == ["whole", "shallow", "shallow", "whole", "whole"]
    features = network.features(x[0], TIMESTEPS[0], BOTH)
    assert torch.equal(found[1], x[1] + features) and torch.equal(found[2], x[2] + features[1:])
    assert not torch.equal(found[2], x[2] + features[:1])


def test_ratios_are_those_of_the_residuals_lengths() -> None:
    lengths, found = iter((1.0, 2.0, 1.0, 0.5, 0.5)), []
    run(measuring(lambda x, t: x + next(lengths), found))
    assert found == pytest.approx([1, 2, 0.5, 0.5, 1], rel=1e-5)


def test_steps_are_left_out_until_the_errors_add_up() -> None:
    ratios = [1.0, 0.9, 0.9, 0.9, 0.9, 0.9]
    # After the first call: 1 - 0.9, then 1 - 0.81 more.
    assert called_steps(ratios, MagnitudeCache(0.11, 5, 0)) == [0, 2, 4, 5]
    assert called_steps(ratios, MagnitudeCache(0.3, 5, 0)) == [0, 3, 5]
    assert called_steps(ratios, MagnitudeCache(0.3, 1, 0)) == [0, 2, 4, 5]
    assert called_steps(ratios, MagnitudeCache(0.3, 5, 0.5)) == [0, 1, 2, 5]
    assert called_steps(ratios, MagnitudeCache(0.3, 5, 0), fresh=(0, 2)) == [0, 2, 5]
    assert called_steps(ratios, MagnitudeCache(0.0, 5, 0)) == list(range(6))


def test_ratios_of_other_step_counts_reach_the_same_magnitude() -> None:
    measured = Magnitudes((1.0, 0.5, 2.0, 0.8, 0.25), "ddim", "leading", 3.0, 1)
    for steps in (3, 5, 9, 50):
        ratios = measured.at(steps)
        assert len(ratios) == steps and ratios[0] == 1
        assert torch.tensor(ratios).prod() == pytest.approx(0.5 * 2 * 0.8 * 0.25, rel=1e-4)
    assert measured.at(5) == pytest.approx(measured.ratios) and measured.at(1) == [1.0]


def test_ratios_are_kept_by_digest(tmp_path: Path) -> None:
    measured, path = Magnitudes((1.0, 0.5), "ddim", "leading", 3.0, 1), magnitudes_file(tmp_path / "new", "a" * 64)
    assert read_magnitudes(path) is None
    write_magnitudes(measured, path)
    assert read_magnitudes(path) == measured and path != magnitudes_file(tmp_path / "new", "b" * 64)


@pytest.mark.parametrize("change", [{"schema": 2}, {"ratios": [0.0]}, {"ratios": []}, {"ratios": ["a"]}, {"more": 1}])
def test_another_file_is_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "ratios.json"
    write_magnitudes(Magnitudes((1.0, 0.5), "ddim", "leading", 3.0, 1), path)
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **change}), "utf-8")
    with pytest.raises(InputError, match="Expected"):
        read_magnitudes(path)


ONE, TWO = ["core"] * 5, ["core"] * 3 + ["core_late"] * 2
ALL = [True] * 5


def test_calls_are_planned_before_the_clip() -> None:
    cache = Acceleration(None, GuidanceGate(end=0.6), MagnitudeCache(0.3, 5, 0), deep_interval=2)
    calls = plan_calls(cache, TIMESTEPS, ONE, ALL, Magnitudes((1.0, 0.9, 0.9, 0.9, 0.9), "ddim", "leading", 3.0, 1))
    assert (calls.called, calls.guided, calls.whole) == ((0, 3, 4), (0, 1, 2), (0, 4))
    assert calls.branches == 4 and calls.at(calls.called) == {900.0, 300.0, 100.0}
    assert plan_calls(cache, TIMESTEPS, ONE, ALL, None).called == (0, 1, 2, 3, 4)


def test_another_expert_begins_anew() -> None:
    calls = plan_calls(Acceleration(None, GuidanceGate(end=0.2), None, 8), TIMESTEPS, TWO, ALL, None)
    assert (calls.guided, calls.whole) == ((0, 3), (0, 3))
    unguided = plan_calls(Acceleration(None, GuidanceGate()), TIMESTEPS, TWO, [True] * 3 + [False] * 2, None)
    assert unguided.guided == (0, 1, 2) and unguided.branches == 8


def test_what_the_data_decides_is_said_to_be_open() -> None:
    calls = plan_calls(Acceleration(step_cache=ChangeCache(0.1, 0.3)), TIMESTEPS, TWO, ALL, None)
    assert calls.open == (2,) and calls.called == (0, 1, 2, 3, 4)  # the first of the second expert and the last are not


def test_an_exact_plan_makes_every_call() -> None:
    calls = plan_calls(EXACT, TIMESTEPS, ONE, ALL, None)
    assert calls.called == calls.guided == calls.whole == (0, 1, 2, 3, 4) and calls.branches == 10 and EXACT.is_exact


def test_a_solver_never_adds_steps_and_leaves_noisy_samplers_alone() -> None:
    solver, asked = Solver(8, "unipc", "trailing"), SamplerSettings(50, "ddim")
    assert solver.settings(asked) == SamplerSettings(8, "unipc", spacing="trailing")
    assert Solver(8).settings(asked) == SamplerSettings(8, "ddim")
    for kept in (replace(asked, steps=8), replace(asked, eta=0.5)):
        assert solver.settings(kept) == kept


@pytest.mark.parametrize(
    "make",
    [
        lambda: Solver(0),
        lambda: Solver(8, "euler_x"),
        lambda: Solver(8, None, "even"),
        lambda: GuidanceGate(end=1.1),
        lambda: MagnitudeCache(-1.0),
        lambda: MagnitudeCache(0.1, 0),
        lambda: ChangeCache(float("nan")),
        lambda: Acceleration(deep_interval=0),
        lambda: SamplerSettings(8, spacing="even"),
    ],
)
def test_senseless_settings_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(InputError, match="found"):
        make()


def test_presets_are_resolved_by_family(tiny_folder: Path, tiny_svd_folder: Path, tiny_wan: Any) -> None:
    for folder in (tiny_folder, tiny_svd_folder, tiny_wan("wan21")):
        model = open_model(folder)
        presets = [preset_of(name, model) for name in PRESET_NAMES]
        assert [preset.name for preset in presets] == list(PRESET_NAMES)
        assert presets[0] == Preset() and presets[0].acceleration.is_exact
        assert all(not each.acceleration.is_exact and each.quality for each in presets[1:])
        for each in presets[1:]:
            settings = each.acceleration.sampler(SamplerSettings(50, model.schedulers[0]))
            assert settings.scheduler in model.schedulers
    assert preset_of("near", open_model(tiny_svd_folder)).quality == NOT_JUDGED
    with pytest.raises(InputError, match="one of exact, near, fast, real time"):
        preset_of("faster", open_model(tiny_folder))


def test_a_quality_is_that_of_the_accelerators_that_were_judged(tmp_path: Path) -> None:
    path, judged = tmp_path / "quality.json", Acceleration(Solver(8, "unipc"))
    found = Quality("a model", 64, 50, 35.25, 31.0, 0.98, 98.4, tuple(judged.words))
    write_quality("svd", {"near": found}, path)
    write_quality("i2vgen_xl", {"near": found}, path)
    told = quality_line("svd", "near", judged, path)
    assert told == (
        "Quality on a model, 64 clips against 50 exact steps: PSNR 35.2 dB, worst 31.0, SSIM 0.980, "
        "motion right in 98 %."
    )
    others = [("svd", "fast", judged), ("wan21", "near", judged), ("svd", "near", replace(judged, deep_interval=2))]
    assert {quality_line(*other, path) for other in others} == {NOT_JUDGED}


def test_what_a_family_cannot_do_is_said(tiny_svd_folder: Path, tiny_wan: Any) -> None:
    wanted = Preset("fast", Acceleration(Solver(8, "deis", "trailing"), deep_interval=3))
    svd, wan = (resolve(wanted, open_model(folder)) for folder in (tiny_svd_folder, tiny_wan("wan21")))
    assert svd.acceleration == Acceleration(Solver(8), deep_interval=3) and "sampled by euler" in svd.notes[0]
    assert wan.acceleration.deep_interval == 1 and "no deep features" in wan.notes[1]


def test_a_changed_preset_has_no_quality(tiny_folder: Path) -> None:
    model = open_model(tiny_folder)
    near = preset_of("near", model)
    assert changed(near, near.acceleration, model) == near
    assert "not judged" in changed(near, replace(near.acceleration, deep_interval=2), model).quality
    assert set(ACCELERATIONS["i2vgen_xl"]) == set(PRESET_NAMES[1:])

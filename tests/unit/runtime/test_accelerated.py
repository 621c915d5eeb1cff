"""Clips of eager engines under accelerators: each pair gives what its definition by hand gives."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.pipeline.acceleration.magnitudes import Magnitudes, magnitudes_file, write_magnitudes
from i2v_tensorrt.pipeline.acceleration.presets import PRESET_NAMES, Preset, preset_of
from i2v_tensorrt.pipeline.acceleration.settings import (
    Acceleration,
    ChangeCache,
    GuidanceGate,
    MagnitudeCache,
    Solver,
)
from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime import budget
from i2v_tensorrt.runtime.acceleration import cache_bytes, magnitudes_folder, weights_sha256
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.result_cache import result_key

from ...helpers.by_hand import by_hand
from ...helpers.stages import GUIDED, REQUEST, encoded, engines_of, planned, sampled

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

STEPS = 8
LONG = replace(GUIDED, sampler=SamplerSettings(STEPS))
PARTS = {
    "solver": {"solver": Solver(6, "dpmpp_2m")},
    "gate": {"guidance": GuidanceGate(end=0.4)},
    "interval": {"guidance": GuidanceGate(0.3, 0.7, reuse=False)},
    "magnitudes": {"step_cache": MagnitudeCache(0.25, 2, 0.2)},
    "change": {"step_cache": ChangeCache(0.5, 0.2)},
    "deep": {"deep_interval": 3},
}
RATIOS = Magnitudes((1.0, 0.95, 0.9, 0.9, 0.95, 0.9, 0.95, 0.9), "ddim", "leading", 9.0, 1)
PAIRS = [
    pair for pair in itertools.combinations(PARTS, 2) if not set(PARTS[pair[0]]) & set(PARTS[pair[1]])
] + [(name,) for name in PARTS]  # fmt: skip


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    found = engines_of(tiny_folder, tmp_path_factory.mktemp("home") / "engines")
    write_magnitudes(RATIOS, magnitudes_file(magnitudes_folder(found.store), weights_sha256(found.model)))
    return found


@pytest.fixture(scope="module")
def conditioning(engines: EngineSet) -> Conditioning:
    return encoded(engines)


def under(engines: EngineSet, *names: str) -> EngineSet:
    """The engines under accelerators of those names."""
    parts = {key: value for name in names for key, value in PARTS[name].items()}
    return engines.with_preset(Preset("test", Acceleration(**parts)))


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_each_pair_is_its_definition(engines: EngineSet, conditioning: Conditioning, names: tuple[str, ...]) -> None:
    accelerated = under(engines, *names)
    plan = planned(accelerated, conditioning, LONG)
    expected, counted = by_hand(plan, conditioning)
    found = sampled(accelerated, conditioning, LONG)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    exact = sampled(engines, conditioning, LONG)
    assert (found - exact).abs().max() > 1e-3, "nothing was left out"
    notes = accelerated.take_notes()
    assert any(note.startswith(f"{counted} of {2 * STEPS} calls made") for note in notes)
    if not plan.calls or not plan.calls.open:
        assert plan.calls is not None and plan.calls.branches == counted


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("onnxruntime", marks=pytest.mark.slow),
        pytest.param("inductor", marks=pytest.mark.torture),  # which compiles for minutes
    ],
)
def test_each_pair_is_its_definition_through_engines(tiny_folder: Path, tmp_path: Path, backend: str) -> None:
    """Sides that halve evenly, as engines take them; the definition runs by the same engines."""
    engines = engines_of(tiny_folder, tmp_path / "engines", backend=backend, on_missing="build")
    write_magnitudes(RATIOS, magnitudes_file(magnitudes_folder(engines.store), weights_sha256(engines.model)))
    conditioning = encoded(engines, replace(REQUEST, width=64, height=64))
    for names in PAIRS:
        accelerated = under(engines, *names)
        expected, _ = by_hand(planned(accelerated, conditioning, LONG), conditioning)
        found = sampled(accelerated, conditioning, LONG)
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max(), names
        used = {"core_deep", "core_shallow"} if "deep" in names else {"core"}
        assert {accelerated.describe(name) for name in used} == {f"{backend}, fp32 on cpu"}


@pytest.mark.parametrize("names", [("gate",), ("magnitudes",), ("deep",), ("magnitudes", "deep")], ids="+".join)
@pytest.mark.parametrize("wrong", ["shifted", "seed"])
def test_controls_are_no_longer_the_definition(
    engines: EngineSet, conditioning: Conditioning, names: tuple[str, ...], wrong: str
) -> None:
    accelerated = under(engines, *names)
    plan = planned(accelerated, conditioning, LONG)
    assert plan.calls is not None
    if wrong == "shifted":  # off by one step, and for the gate open at the wrong end
        calls = plan.calls
        last = STEPS - 1
        moved = {
            "called": tuple(sorted({0, *(min(step + 1, last) for step in calls.called)})),
            "guided": tuple(last - step for step in calls.guided),
            "whole": tuple(sorted({0, *(min(step + 1, last) for step in calls.whole)})),
        }
        other = by_hand(replace(plan, calls=replace(calls, **moved)), conditioning)[0]
    else:
        other = by_hand(planned(accelerated, conditioning, replace(LONG, seed=6)), conditioning)[0]
    assert (sampled(accelerated, conditioning, LONG) - other).abs().max() > 1e-3


@pytest.mark.parametrize("names", [("gate", "magnitudes"), ("gate", "deep"), ("change", "deep")], ids="+".join)
@pytest.mark.parametrize("stop_at", [1, 3, 6])
def test_nothing_is_left_of_an_interrupted_clip(
    engines: EngineSet, conditioning: Conditioning, names: tuple[str, ...], stop_at: int
) -> None:
    accelerated = under(engines, *names)
    fresh = sampled(accelerated, conditioning, LONG)

    def stop(done: int, total: int, latents: torch.Tensor) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampled(accelerated, conditioning, replace(LONG, seed=9), stop)
    assert torch.equal(sampled(accelerated, conditioning, LONG), fresh)
    other = encoded(accelerated, replace(REQUEST, width=72, height=64))
    sampled(accelerated, other, LONG)
    assert torch.equal(sampled(accelerated, conditioning, LONG), fresh)


def test_an_exact_preset_is_the_plain_clip(engines: EngineSet, conditioning: Conditioning) -> None:
    exact = engines.with_preset(preset_of("exact", engines.model))
    assert torch.equal(sampled(exact, conditioning), sampled(engines, conditioning))
    plan = planned(exact, conditioning)
    assert plan.calls is None and plan.calls_line is None
    assert result_key(plan, conditioning) == result_key(planned(engines, conditioning), conditioning)


def test_every_preset_has_a_result_of_its_own(engines: EngineSet, conditioning: Conditioning) -> None:
    asked = replace(GUIDED, sampler=SamplerSettings(50))
    sets = [engines.with_preset(preset_of(name, engines.model)) for name in PRESET_NAMES]
    keys = {result_key(planned(each, conditioning, asked), conditioning) for each in sets}
    assert len(keys) == len(PRESET_NAMES)
    lines = [planned(each, conditioning, asked).calls_line or "" for each in sets[1:]]
    made = [int(line.split(" of 100 calls")[0]) for line in lines]
    assert made == sorted(made, reverse=True) and made[0] < 100


def test_what_the_caches_hold_is_in_the_budget(engines: EngineSet) -> None:
    size, latents = ClipSize(64, 72, 3), 3 * 4 * 9 * 8 * 4
    for names, held in ((("gate",), latents), (("gate", "change"), 4 * latents), (("magnitudes",), latents)):
        acceleration = under(engines, *names).preset.acceleration
        assert cache_bytes(acceleration, engines.model, size, "fp32", guided=True) == held
        more = budget.denoising(under(engines, *names), guided=True).cost(size)
        assert more == budget.denoising(engines, guided=True).cost(size) + held
    deep = cache_bytes(Acceleration(deep_interval=2), engines.model, size, "fp16", guided=True)
    channels = next(x for x in engines.model.components["core_deep"].spec.outputs if x.name == "deep").dims[2]
    assert isinstance(channels, int) and deep == 2 * 3 * channels * 9 * 8 * 2


def test_what_a_preset_calls_is_prepared(engines: EngineSet, conditioning: Conditioning) -> None:
    plan = planned(under(engines, "gate", "deep"), conditioning).clip
    (first, both), (second, alone) = plan.engine_sizes
    assert first[:2] == second == ("core_deep", "core_shallow") and "core" not in first and "vae_decoder" in first
    assert (both["batch"], alone["batch"]) == (2, 1)
    assert planned(engines, conditioning).clip.engine_sizes == [(engines.model.build_order, plan.sizes)]

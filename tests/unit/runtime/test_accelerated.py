"""Clips of eager engines under accelerators: each pair gives what its definition by hand gives."""

import gc
import weakref
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.pipeline.acceleration.presets import PRESET_NAMES, preset_of
from i2v_tensorrt.pipeline.acceleration.settings import Acceleration
from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.sampler import Denoise
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime import budget
from i2v_tensorrt.runtime.acceleration import cache_bytes
from i2v_tensorrt.runtime.clip import sample_clip
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.result_cache import result_key

from ...helpers.accelerated import EXACT, PAIRS, STEPS, distance, held_bytes, under, with_ratios
from ...helpers.by_hand import by_hand
from ...helpers.counts import Evidence, counted
from ...helpers.stages import GUIDED, REQUEST, encoded, engines_of, planned, quiet, sampled

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

LONG = replace(GUIDED, sampler=SamplerSettings(STEPS))


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return with_ratios(engines_of(tiny_folder, tmp_path_factory.mktemp("home") / "engines"))


@pytest.fixture(scope="module")
def conditioning(engines: EngineSet) -> Conditioning:
    return encoded(engines)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_each_pair_is_its_definition(engines: EngineSet, conditioning: Conditioning, names: tuple[str, ...]) -> None:
    accelerated = under(engines, *names)
    plan = planned(accelerated, conditioning, LONG)
    expected = by_hand(plan, conditioning)
    found, counted = sampled(accelerated, conditioning, LONG), expected.seen
    assert distance(found, expected.latents) <= EXACT
    exact = sampled(engines, conditioning, LONG)
    assert (found - exact).abs().max() > 1e-3, "nothing was left out"
    notes = accelerated.take_notes()
    assert any(note.startswith(f"{counted} of {2 * STEPS} calls made") for note in notes)
    if not plan.calls or not plan.calls.open:
        assert plan.calls is not None and plan.calls.branches == counted


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


@counted(2, 50)
def test_a_clip_owes_nothing_to_interrupts_and_sizes_before_it(
    engines: EngineSet, conditioning: Conditioning, count: int, evidence: Evidence
) -> None:
    """Each clip of all accelerators at once comes after an interrupted one and one of another size."""
    accelerated = under(engines, "gate", "change", "deep")
    fresh = sampled(accelerated, conditioning, LONG)
    sizes = [(64, 64, 3), (72, 64, 2), (96, 64, 1), (64, 80, 4)]
    others = [encoded(accelerated, replace(REQUEST, width=w, height=h, num_frames=n)) for w, h, n in sizes]
    for number in range(count):

        def stop(done: int, total: int, latents: torch.Tensor, last: int = 1 + number % (STEPS - 1)) -> None:
            if done == last:
                raise KeyboardInterrupt

        other = others[number % len(others)]
        sampled(accelerated, other, replace(LONG, seed=100 + number))
        with pytest.raises(KeyboardInterrupt):
            sampled(accelerated, (conditioning, other)[number % 2], replace(LONG, seed=200 + number), stop)
        assert torch.equal(sampled(accelerated, conditioning, LONG), fresh)
    evidence("accelerated clips in one process, likewise", count, "each is a fresh one, bit for bit")


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


@pytest.mark.parametrize(
    "names",
    [("gate",), ("magnitudes",), ("change",), ("deep",), ("gate", "change"), ("gate", "deep"), ("magnitudes", "deep")],
    ids="+".join,
)
def test_a_clip_holds_what_the_budget_says_and_nothing_after(
    engines: EngineSet, conditioning: Conditioning, names: tuple[str, ...]
) -> None:
    accelerated, held = under(engines, *names), list[int]()
    functions: list[weakref.ref[Denoise]] = []

    def watched(denoise: Denoise) -> Denoise:
        functions.append(weakref.ref(denoise))

        def call(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            prediction = denoise(x, t)
            held.append(held_bytes(denoise))
            return prediction

        return call

    sample_clip(planned(accelerated, conditioning, LONG), conditioning, quiet, watched)
    acceleration = accelerated.preset.acceleration
    assert max(held) == cache_bytes(acceleration, engines.model, conditioning.size, "fp32", guided=True) > 0
    gc.collect()
    assert [function() for function in functions] == [None]


def test_what_a_preset_calls_is_prepared(engines: EngineSet, conditioning: Conditioning) -> None:
    plan = planned(under(engines, "gate", "deep"), conditioning).clip
    (first, both), (second, alone) = plan.engine_sizes
    assert first[:2] == second == ("core_deep", "core_shallow") and "core" not in first and "vae_decoder" in first
    assert (both["batch"], alone["batch"]) == (2, 1)
    assert planned(engines, conditioning).clip.engine_sizes == [(engines.model.build_order, plan.sizes)]

"""What the definitions by hand can see: the states of another step, clip, seed or interrupted clip.

Each control is compared with the accelerated clip as its definition is; see `test_accelerated.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.runtime.clip_plan import SamplingPlan
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ...helpers.accelerated import EXACT, PAIRS, STEPS, distance, long, under, with_ratios
from ...helpers.by_hand import by_hand
from ...helpers.stages import REQUEST, encoded, engines_of, planned, sampled

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

SEEN = 100 * EXACT
"""The least distance of a control."""
EVEN = replace(REQUEST, width=64, height=64)
"""Sides that halve evenly, as engines take them."""
OTHER = replace(EVEN, picture=Image.new("RGB", (70, 50), "crimson"), prompt="a house", fps=24)
HELD = {"gate": ("difference",), "magnitudes": ("in", "out"), "deep": ("deep",)}
"""What each accelerator holds between calls, by the name of `by_hand`'s state."""
CONTROLLED = [("gate",), ("magnitudes",), ("deep",), ("gate", "magnitudes"), ("gate", "deep"), ("magnitudes", "deep")]
INTERRUPTED = 2
"""Steps of an interrupted clip: the gate is still open."""
FAMILIES = ("i2vgen_xl", "svd")


@pytest.fixture(scope="module")
def open_engines(
    tiny_folder: Path, tiny_svd_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., EngineSet]:
    """Gives engines of one of the families and of a policy, in a store of their own."""
    folders = dict(zip(FAMILIES, (tiny_folder, tiny_svd_folder), strict=True))
    return cache(
        lambda family, **policy: with_ratios(
            engines_of(folders[family], tmp_path_factory.mktemp("home") / "engines", **policy)
        )
    )


@pytest.fixture(scope="module", params=FAMILIES)
def engines(request: pytest.FixtureRequest, open_engines: Callable[..., EngineSet]) -> EngineSet:
    return open_engines(request.param)


@pytest.fixture(scope="module")
def conditioning(engines: EngineSet) -> Conditioning:
    return encoded(engines, EVEN)


@pytest.fixture(scope="module")
def other(engines: EngineSet) -> Conditioning:
    return encoded(engines, OTHER)


def moved(plan: SamplingPlan) -> SamplingPlan:
    """The plan with its caches off by one step, and its gate open at the other end."""
    assert plan.calls is not None
    calls, last = plan.calls, STEPS - 1
    called, whole = (
        tuple(sorted({0, *(min(step + 1, last) for step in steps)})) for steps in (calls.called, calls.whole)
    )
    guided = calls.guided if len(calls.guided) == STEPS else tuple(last - step for step in calls.guided)
    return replace(plan, calls=replace(calls, called=called, whole=whole, guided=guided))


def controls(
    accelerated: EngineSet, conditioning: Conditioning, other: Conditioning, names: tuple[str, ...]
) -> Mapping[str, torch.Tensor]:
    """The clip made by hand in each wrong way."""
    settings = long(accelerated.model)
    plan = planned(accelerated, conditioning, settings)
    reseeded = planned(accelerated, conditioning, replace(settings, seed=6))
    left = {
        "held of another clip": by_hand(plan, other).held,
        "held of another seed": by_hand(reseeded, conditioning).held,
        "held of an interrupted clip": by_hand(plan, conditioning, stop_at=INTERRUPTED).held,
    }
    found = {"steps": by_hand(moved(plan), conditioning), "seed": by_hand(reseeded, conditioning)}
    for wrong, held in left.items():
        stale = {name: held[name] for each in names for name in HELD[each]}
        found[wrong] = by_hand(plan, conditioning, stale)
    return {wrong: made.latents for wrong, made in found.items()}


def check_controls(engines: EngineSet, conditioning: Conditioning, other: Conditioning, names: tuple[str, ...]) -> None:
    accelerated = under(engines, *names)
    found = sampled(accelerated, conditioning, long(engines.model))
    for wrong, latents in controls(accelerated, conditioning, other, names).items():
        assert distance(latents, found) > SEEN, wrong


def check_definition(engines: EngineSet, conditioning: Conditioning, names: tuple[str, ...]) -> None:
    accelerated, settings = under(engines, *names), long(engines.model)
    expected = by_hand(planned(accelerated, conditioning, settings), conditioning).latents
    assert distance(sampled(accelerated, conditioning, settings), expected) <= EXACT, names


@pytest.mark.parametrize("names", CONTROLLED, ids="+".join)
def test_a_wrong_state_is_no_longer_the_definition(
    engines: EngineSet, conditioning: Conditioning, other: Conditioning, names: tuple[str, ...]
) -> None:
    check_definition(engines, conditioning, names)
    check_controls(engines, conditioning, other, names)


@pytest.mark.parametrize("names", PAIRS, ids="+".join)
def test_each_pair_of_svd_is_its_definition(open_engines: Callable[..., EngineSet], names: tuple[str, ...]) -> None:
    engines = open_engines("svd")
    check_definition(engines, encoded(engines, EVEN), names)


@pytest.mark.parametrize(
    ("backend", "family"),
    [
        pytest.param(backend, family, marks=pytest.mark.torture)  # minutes each
        for backend in ("onnxruntime", "inductor")
        for family in ("i2vgen_xl", "svd")
    ],
)
def test_each_pair_is_its_definition_through_engines(
    open_engines: Callable[..., EngineSet], family: str, backend: str
) -> None:
    """The definition runs by the same engines: the whole denoiser, the one with deep features and its shallow part."""
    engines, eager = open_engines(family, backend=backend, on_missing="build"), open_engines(family)
    conditioning, other = encoded(eager, EVEN), encoded(eager, OTHER)
    for names in PAIRS:
        check_definition(engines, conditioning, names)
        used = {"core_deep", "core_shallow"} if "deep" in names else {"core"}
        assert {under(engines, *names).describe(name) for name in used} == {f"{backend}, fp32 on cpu"}
    for names in CONTROLLED:
        check_controls(engines, conditioning, other, names)

"""Our clip is the one that diffusers' pipeline makes, for every family; and what should differ does."""

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.denoising.schedulers import SCHEDULERS
from i2v_tensorrt.pipeline.models.wan.wan22 import WanA14B
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime.clip import decode_clip, encode_clip
from i2v_tensorrt.runtime.clip_plan import plan_clip
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ..helpers.reference_clip import Clip, difference, ours
from ..helpers.stages import encoded, engines_of
from .families import FAMILIES, asked, changed, each, of_size, sampler, theirs

Of = Callable[[str], Any]
"""By the family's name."""

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy
each_family = pytest.mark.parametrize("name", FAMILIES)


@pytest.fixture(scope="module")
def engines(folder: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], EngineSet]:
    return cache(lambda name: engines_of(folder(name), tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def published(folder: Callable[[str], Path]) -> Of:
    """What makes a clip by diffusers' pipeline."""

    @cache
    def load(name: str) -> Callable[..., torch.Tensor]:
        pipeline = FAMILIES[name].published(folder(name))
        pipeline.set_progress_bar_config(disable=True)
        return partial(theirs, FAMILIES[name], pipeline)

    return load


@pytest.fixture(scope="module")
def expected(published: Of) -> Of:
    return cache(lambda name: published(name)(FAMILIES[name].clip))


@pytest.fixture
def is_same(engines: Of, expected: Of) -> Callable[..., bool]:
    """Whether our clip, `clip` unless another is given, is the published one."""

    def compare(name: str, clip: Clip | None = None, frames: list[int] | None = None) -> bool:
        family = FAMILIES[name]
        found = ours(engines(name), clip or family.clip)
        return difference(found if frames is None else found[frames], expected(name)) <= family.tolerance

    return compare


@pytest.mark.parametrize(("name", "clip"), each(asked))
def test_the_same_latents(engines: Of, published: Of, name: str, clip: Clip) -> None:
    assert difference(ours(engines(name), clip), published(name)(clip)) <= FAMILIES[name].tolerance


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_same_noise_on_the_way(engines: Of, published: Of, eta: float) -> None:
    """Up to the rounding of how much of it there is, which is more exact than diffusers'."""
    clip = sampler(of_size(FAMILIES["i2vgen_xl"].clip, (64, 72), 3), eta=eta)
    off = difference(ours(engines("i2vgen_xl"), clip), published("i2vgen_xl")(clip))
    assert off <= 2 * FAMILIES["i2vgen_xl"].tolerance


@pytest.mark.parametrize(("name", "chunk"), each(lambda family: family.chunks))
def test_the_same_frames(engines: Of, published: Of, name: str, chunk: int) -> None:
    """Where chunks decide what a frame's decoder sees, by the same chunks."""
    family = FAMILIES[name]
    clip = of_size(family.clip, (64, 64), family.decoded_frames)
    latents = engines(name).model.to_latent(ours(engines(name), clip))
    plan, tensors = plan_clip(engines(name), clip.request.size), encoded(engines(name), clip.request).tensors
    frames = decode_clip(plan, latents, chunk, lambda *_: None, tensors)
    options = {"decode_chunk_size": chunk} if family.chunk_decides else {}
    wanted = published(name)(clip, output_type="pt", **options)
    assert difference(frames, wanted.movedim(1, -1)) <= 1e-4
    if family.chunk_decides and chunk < family.decoded_frames:
        assert difference(frames, decode_clip(plan, latents, family.decoded_frames, lambda *_: None)) > 1e-3


@pytest.mark.parametrize(("name", "clip"), each(lambda family: family.same))
def test_control_the_right_request_is_the_same(is_same: Callable[..., bool], name: str, clip: Clip) -> None:
    assert is_same(name, clip)


@pytest.mark.parametrize(("name", "wrong"), each(lambda family: family.wrong))
def test_control_a_wrong_request_is_seen(is_same: Callable[..., bool], name: str, wrong: str) -> None:
    assert not is_same(name, FAMILIES[name].wrong[wrong])


@each_family
def test_control_swapped_guidance_halves_are_seen(
    engines: Of, is_same: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    family = type(engines(name).model)
    combine = family.combine

    def swapped(self: Any, outputs: Mapping[str, torch.Tensor], scale: Any) -> torch.Tensor:
        return combine(self, {"prediction": outputs["prediction"].flip(0)}, scale)

    monkeypatch.setattr(family, "combine", swapped)
    assert not is_same(name)


@pytest.mark.parametrize("order", ["swapped", "reversed", "rolled"])
@each_family
def test_control_permuted_frames_are_seen(expected: Of, is_same: Callable[..., bool], name: str, order: str) -> None:
    frames = list(range(len(expected(name))))
    orders = {"swapped": [1, 0, *frames[2:]], "reversed": frames[::-1], "rolled": [*frames[1:], 0]}
    assert not is_same(name, frames=orders[order])


@pytest.mark.parametrize(("name", "layer"), each(lambda family: family.layers))
def test_control_one_layer_off_by_a_hundredth_is_seen(
    engines: Of, is_same: Callable[..., bool], name: str, layer: str
) -> None:
    weight = engines(name).model.part(FAMILIES[name].network, "fp32").get_submodule(layer).weight
    kept = weight.clone()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    try:
        weight += 1e-2 * weight.std() * noise
        assert not is_same(name)
    finally:
        weight.copy_(kept)


@each_family
def test_control_without_one_part_of_the_conditioning_is_seen(
    engines: Of, is_same: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    family, clip = type(engines(name).model), FAMILIES[name].clip
    prepare, tensors = family.prepare_input, encoded(engines(name), clip.request).tensors
    assert tensors
    for missing in tensors.keys() - family.decoder_inputs.keys():

        def blind(self: Any, x: torch.Tensor, t: torch.Tensor, given: Any, name: str = missing) -> Any:
            return prepare(self, x, t, {**given, name: torch.zeros_like(given[name])})

        monkeypatch.setattr(family, "prepare_input", blind)
        assert not is_same(name), missing


@each_family
def test_schedulers_that_it_was_not_trained_for_are_refused_in_a_sentence(engines: Of, name: str) -> None:
    model = engines(name).model
    for scheduler in {*SCHEDULERS} - {*model.schedulers}:
        told = f"^{model.title} is sampled by the scheduler {' or '.join(model.schedulers)}, found {scheduler}.$"
        with pytest.raises(InputError, match=told):
            ours(engines(name), sampler(FAMILIES[name].clip, steps=2, scheduler=scheduler))


@pytest.mark.parametrize("denoiser", WanA14B.denoisers)
def test_control_one_expert_for_all_steps_is_seen(
    is_same: Callable[..., bool], monkeypatch: pytest.MonkeyPatch, denoiser: str
) -> None:
    monkeypatch.setattr(WanA14B, "select_denoiser", lambda *_: denoiser)
    assert not is_same("a14b")


def test_a_prompt_is_told_to_be_of_no_use_and_changes_nothing(engines: Of) -> None:
    cache, clip = ConditioningCache(None), FAMILIES["svd"].clip
    plan = plan_clip(engines("svd"), clip.request.size)
    worded = changed(clip, prompt="a boat", negative_prompt="blurry")
    quiet, told = (encode_clip(plan, each.request, cache, lambda *_: None) for each in (clip, worded))
    assert quiet.notes == ()
    assert told.notes == ("Stable Video Diffusion has no text encoder: the prompts are not used.",)
    assert told.place == "memory"
    assert all(torch.equal(told.tensors[name], quiet.tensors[name]) for name in quiet.tensors)

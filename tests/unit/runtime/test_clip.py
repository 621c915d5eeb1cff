"""The three stages over eager engines: what is run, how often, in which batch, and what is refused."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.errors import I2VError, InputError
from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.schedulers import SCHEDULERS, SamplerSettings
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime import denoiser
from i2v_tensorrt.runtime.clip import decode_clip, sample_clip
from i2v_tensorrt.runtime.clip_plan import MAX_GUIDANCE, plan_clip, plan_sampling
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ...helpers.stages import GUIDED, REQUEST, decoded, encoded, engines_of, planned, quiet, sampled

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

NAN, INF = float("nan"), float("inf")
NO_GUIDANCE = (NAN, INF, -INF, -0.1, 100.1, "9", "\n", None, [9], True, 10**400)


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return engines_of(tiny_folder, tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def conditioning(engines: EngineSet) -> Conditioning:
    return encoded(engines)


def assert_one_sentence(error: pytest.ExceptionInfo[I2VError]) -> None:
    text = str(error.value)
    assert text.endswith(".") and "\n" not in text and len(text) < 300


def components(calls: list[tuple[str, int]]) -> list[str]:
    """Those that have been called since this was asked last."""
    found = [name for name, _ in calls]
    calls.clear()
    return found


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        *(({"guidance_scale": value}, f"to {MAX_GUIDANCE:g}, found") for value in NO_GUIDANCE),
        *(({"min_guidance_scale": value}, f"to {MAX_GUIDANCE:g}, found") for value in (NAN, -0.1, 100.1)),
        *(({"seed": value}, "seed is a whole number") for value in (-1, 1 << 64, 1.5, NAN, True)),
    ],
    ids=str,
)
def test_denoising_that_cannot_be_served(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        replace(GUIDED, **changes)
    assert_one_sentence(error)


@pytest.mark.parametrize(
    ("guidance_scale", "batch"), [(0.0, 1), (0.5, 1), (1.0, 1), (1.1, 2), (9.0, 2), (MAX_GUIDANCE, 2)]
)
def test_guidance_of_one_or_less_runs_half_the_work(
    engines: EngineSet, conditioning: Conditioning, calls: list[tuple[str, int]], guidance_scale: float, batch: int
) -> None:
    latents = sampled(engines, conditioning, replace(GUIDED, guidance_scale=guidance_scale))
    assert calls == [("core", batch)] * 3
    assert latents.shape == (3, 4, 9, 8) and bool(torch.isfinite(latents).all())


def test_guidance_of_one_or_less_listens_to_the_prompt_alone(engines: EngineSet) -> None:
    alone = replace(GUIDED, guidance_scale=1.0)
    base = sampled(engines, encoded(engines), alone)
    assert torch.equal(sampled(engines, encoded(engines, replace(REQUEST, negative_prompt="sharp")), alone), base)
    assert not torch.equal(sampled(engines, encoded(engines, replace(REQUEST, prompt="a train")), alone), base)
    assert torch.equal(sampled(engines, encoded(engines), replace(alone, guidance_scale=0.0)), base)


def test_the_same_settings_give_the_same_clip_and_others_another(
    engines: EngineSet, conditioning: Conditioning
) -> None:
    torch.manual_seed(1)
    first = sampled(engines, conditioning)
    torch.manual_seed(2)
    assert torch.equal(sampled(engines, conditioning), first)
    for seed in (0, 6, (1 << 64) - 1):
        assert (sampled(engines, conditioning, replace(GUIDED, seed=seed)) - first).abs().max() > 0.1
    # Guidance may rise over the frames.
    assert torch.allclose(sampled(engines, conditioning, replace(GUIDED, min_guidance_scale=9.0)), first, atol=1e-5)
    rising = sampled(engines, conditioning, replace(GUIDED, min_guidance_scale=1.0))
    assert bool(((rising - first).abs().amax((1, 2, 3)) > 1e-3).all())


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_scheduler_serves_the_network(engines: EngineSet, conditioning: Conditioning, scheduler: str) -> None:
    latents = sampled(engines, conditioning, replace(GUIDED, sampler=SamplerSettings(3, scheduler)))
    assert latents.shape == (3, 4, 9, 8) and latents.dtype == torch.float32
    assert bool(torch.isfinite(latents).all()) and latents.std() > 0.1


def test_another_seed_encodes_nothing_another_picture_does(
    engines: EngineSet, calls: list[tuple[str, int]], tmp_path: Path
) -> None:
    cache = ConditioningCache(tmp_path)
    first = sampled(engines, encoded(engines, cache=cache))
    assert components(calls) == ["image_encoder", "vae_encoder", "text_encoder", "conditioner", *["core"] * 3]
    assert not torch.equal(sampled(engines, encoded(engines, cache=cache), replace(GUIDED, seed=6)), first)
    assert components(calls) == ["core"] * 3
    assert torch.equal(sampled(engines, encoded(engines, cache=ConditioningCache(tmp_path))), first)
    assert components(calls) == ["core"] * 3
    encoded(engines, replace(REQUEST, picture=Image.new("RGB", (70, 50), "tan")), cache)
    assert len(calls) == 4


def test_engines_are_prepared_only_for_what_is_encoded_and_sampling_changes_nothing_of_it(
    engines: EngineSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[object] = []
    cache = ConditioningCache(None)
    with monkeypatch.context() as patch:
        patch.setattr(engines, "prepare", lambda sizes, components: prepared.append(sizes))
        found, _ = (encoded(engines, cache=cache) for _ in range(2))
    assert len(prepared) == 1
    before = {name: tensor.clone() for name, tensor in found.tensors.items()}
    sampled(engines, found)
    assert all(torch.equal(encoded(engines, cache=cache).tensors[name], before[name]) for name in before)


@pytest.mark.parametrize("stop_at", [1, 2, 3])
def test_an_interruption_takes_effect_within_its_step_and_leaves_nothing_behind(
    engines: EngineSet, conditioning: Conditioning, calls: list[tuple[str, int]], stop_at: int
) -> None:
    def stop(done: int, total: int, latents: torch.Tensor) -> None:
        assert total == 3 and latents.shape == (3, 4, 9, 8)
        if done == stop_at:
            raise KeyboardInterrupt

    expected = sampled(engines, conditioning)
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        sampled(engines, conditioning, on_step=stop)
    assert len(calls) == stop_at
    assert torch.equal(sampled(engines, conditioning), expected)


def test_what_another_plan_gave_is_refused(engines: EngineSet, conditioning: Conditioning) -> None:
    other = plan_clip(engines, conditioning.size._replace(width=128))
    with pytest.raises(InputError, match="Expected conditioning of 128x72 with 3 frames, found 64x72 with 3 frames"):
        sample_clip(plan_sampling(other, GUIDED), conditioning, quiet)
    with pytest.raises(InputError, match="Expected latents of 128x72 with 3 frames, found 64x64 with 1 frame."):
        decode_clip(other, torch.zeros(1, 4, 8, 8), 1, quiet)


def test_a_clip_begins_from_latents_that_are_there(engines: EngineSet, conditioning: Conditioning) -> None:
    def made(strength: float, start: torch.Tensor | None) -> torch.Tensor:
        denoising = replace(GUIDED, sampler=replace(GUIDED.sampler, strength=strength))
        return sample_clip(planned(engines, conditioning, denoising), conditioning, quiet, start=start)

    first = sampled(engines, conditioning)
    near, far = (float((made(strength, first) - first).norm() / first.norm()) for strength in (0.3, 1.0))
    assert 0 < near < far
    with pytest.raises(InputError, match="below 1 is for latents to begin from, found 0.5 and none"):
        made(0.5, None)
    with pytest.raises(
        InputError, match=r"Expected latents of 64x72 with 3 frames.*found 32x72 with 3 frames: Upscale"
    ):
        made(0.5, first[..., :4])


def test_a_plan_says_how_each_core_is_called(engines: EngineSet) -> None:
    for scale, branches in ((9.0, 2), (1.0, 1)):
        plan = plan_sampling(plan_clip(engines, REQUEST.size), replace(GUIDED, guidance_scale=scale))
        core = plan.denoisers["core"]
        dims = {"frames": 3, "latent_height": 9, "latent_width": 8, "chunk": 3}
        assert core.sizes == {"batch": branches, **dims}
        assert (core.guidance_scale, len(core.branches)) == (scale, branches)
        assert core.backend is not None and core.backend.name == "eager"
        assert plan.clip.sizes == {"batch": 2, **dims}


CORE_EXPECTS: dict[str, Callable[[Any], Any]] = {
    "tensor missing": lambda tensors: {name: tensor for name, tensor in tensors.items() if name != "context"},
    "other width": lambda tensors: {**tensors, "context": tensors["context"][..., :16]},
    "other size": lambda tensors: {**tensors, "image_cond": tensors["image_cond"][..., :4]},
    "tensor unknown": lambda tensors: {**tensors, "more": tensors["fps_emb"]},
}


@pytest.mark.parametrize("other", [*CORE_EXPECTS, "family"])
def test_conditioning_of_another_checkpoint_is_refused(
    engines: EngineSet, conditioning: Conditioning, other: str
) -> None:
    if other == "family":
        strange, words = replace(conditioning, family="svd"), "Expected conditioning of i2vgen_xl, found svd"
    else:
        strange, words = replace(conditioning, tensors=CORE_EXPECTS[other](conditioning.tensors)), "core expects"
    with pytest.raises(InputError, match=words) as error:
        sampled(engines, strange)
    assert_one_sentence(error)


def test_latents_that_are_not_finite_are_refused(
    engines: EngineSet, conditioning: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    combine = I2VGenXL.combine
    monkeypatch.setattr(I2VGenXL, "combine", lambda *given: combine(*given) * torch.inf)
    with pytest.raises(InputError, match="not finite in fp32") as error:
        sampled(engines, conditioning)
    assert_one_sentence(error)


def test_decoding_in_chunks_equals_the_whole(engines: EngineSet, calls: list[tuple[str, int]]) -> None:
    latents = torch.randn(5, 4, 8, 9, generator=torch.Generator().manual_seed(0))
    whole = decoded(engines, latents, 5)
    assert whole.shape == (5, 64, 72, 3) and whole.dtype == torch.float32
    assert 0 <= whole.min() and whole.max() <= 1 and whole.std() > 0.01
    for chunk in (1, 3):
        assert (decoded(engines, latents, chunk) - whole).abs().max() <= 1e-5
    assert [batch for _, batch in calls] == [5, *[1] * 5, 3, 2]
    expected = engines.model.part("vae", "fp32").decode(latents).sample
    assert ((expected / 2 + 0.5).clamp(0, 1).movedim(1, -1) - whole).abs().max() <= 1e-6, "what the VAE does"


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (4, 8, 8), (1, 4, 2, 8, 8), (2, 3, 64, 64)])
def test_latents_of_another_kind_are_refused(engines: EngineSet, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="Expected latents as .frames, 4, height, width., found") as error:
        decoded(engines, torch.zeros(shape), 1)
    assert_one_sentence(error)


def test_from_picture_to_frames(engines: EngineSet) -> None:
    conditioning = encoded(engines)
    frames = decoded(engines, sampled(engines, conditioning), 2)
    assert frames.shape == (3, 72, 64, 3)
    assert 0 <= frames.min() and frames.max() <= 1 and bool(torch.isfinite(frames).all())


def test_after_some_steps_a_clip_weighs_what_an_engine_would_save(
    engines: EngineSet, conditioning: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighed: list[tuple[str, dict[str, int], float]] = []
    monkeypatch.setattr(engines, "hasten", lambda *asked: weighed.append(asked))
    sampled(engines, conditioning, replace(GUIDED, sampler=SamplerSettings(4)))
    assert weighed == [], "so few are done before an engine is there"
    seconds = iter([100.0, 106.0] * 2)  # between the second call and the fifth
    monkeypatch.setattr(denoiser, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    clips = replace(GUIDED, sampler=SamplerSettings(11))
    sampled(engines, conditioning, clips)
    monkeypatch.setattr(EngineSet, "waiting_clips", 3)
    sampled(engines, conditioning, clips)
    (core, sizes, alone_s), (*_, saved_s) = weighed
    assert core == "core"
    assert sizes == planned(engines, conditioning, clips).denoisers["core"].sizes
    gain = engines.model.engine_gain
    assert alone_s == pytest.approx(2 * 7 * gain), "seven calls of two seconds are left, the fifth among them"
    assert saved_s == pytest.approx(2 * (7 + 3 * 11) * gain)


def test_what_was_hastened_takes_over_at_once(
    engines: EngineSet, conditioning: Conditioning, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = replace(GUIDED, sampler=SamplerSettings(7))
    expected = sampled(engines, conditioning, clips)
    by: list[str] = []
    runner = engines.runner

    def watched(name: str, whose: str) -> Any:
        found = runner(name, planned(engines, conditioning, clips).denoisers[name].sizes)
        return lambda inputs: (by.append(whose), found(inputs))[1]

    monkeypatch.setattr(engines, "runner", lambda name, sizes: watched(name, "engine" if by else "eager"))
    monkeypatch.setattr(engines, "hasten", lambda *_: True)
    assert torch.equal(sampled(engines, conditioning, clips), expected)
    assert by == ["eager"] * 4 + ["engine"] * 3

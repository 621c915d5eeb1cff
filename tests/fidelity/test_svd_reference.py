"""Our clip is the one that diffusers' StableVideoDiffusionPipeline makes, and what should differ does."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.denoising.schedulers import SCHEDULERS, SamplerSettings
from i2v_tensorrt.pipeline.media.image import crop_to_aspect
from i2v_tensorrt.pipeline.models.svd.model import StableVideoDiffusion
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime.clip import decode_clip, encode_clip
from i2v_tensorrt.runtime.clip_plan import Denoising, plan_clip
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ..helpers.reference_clip import Clip, difference, eager_engines, ours, painted

GATE = 1e-5
"""The greatest difference, as a part of the greatest latent, that is still the same clip."""
SEED = 7


pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy


def clip(
    size: tuple[int, int] = (64, 64), frames: int = 4, guidance: tuple[float, float] = (1.0, 3.0), steps: int = 4
) -> Clip:
    request = ClipRequest(painted(300, 260), "", "", *size, frames, 7, noise_aug_seed=SEED)
    return Clip(request, Denoising(SEED, guidance[1], SamplerSettings(steps, "euler"), guidance[0]))


@pytest.fixture(scope="module")
def reference(tiny_svd_folder: Path) -> Any:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    folder = tiny_svd_folder
    parts: dict[str, Any] = {
        "vae": AutoencoderKLTemporalDecoder.from_pretrained(folder / "vae", low_cpu_mem_usage=False),
        "image_encoder": CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval(),
        "feature_extractor": CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor"),
        "unet": UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False),
        "scheduler": EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    }
    pipeline = StableVideoDiffusionPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def engines(tiny_svd_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return eager_engines(tiny_svd_folder, tmp_path_factory.mktemp("store"))


def theirs(reference: Any, wanted: Clip, output_type: str = "latent", chunk: int | None = None) -> torch.Tensor:
    """One generator draws the picture's noise and then the clip's, as the published pipeline has it."""
    request, denoising = wanted.request, wanted.denoising
    found = reference(
        image=crop_to_aspect(request.picture, request.width, request.height),
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        fps=request.fps,
        motion_bucket_id=request.motion_bucket_id,
        noise_aug_strength=request.noise_aug_strength,
        num_inference_steps=denoising.sampler.steps,
        min_guidance_scale=denoising.min_guidance_scale,
        max_guidance_scale=denoising.guidance_scale,
        generator=torch.Generator().manual_seed(denoising.seed),
        output_type=output_type,
        decode_chunk_size=chunk,
    ).frames
    return found[0]


@pytest.mark.parametrize("guidance", [(1.0, 3.0), (2.5, 2.5), (1.0, 1.0)], ids=str)
@pytest.mark.parametrize(
    ("size", "frames"), [((64, 64), 4), ((96, 64), 3), ((64, 128), 2), ((72, 88), 2)], ids=lambda value: str(value)
)
def test_the_same_latents(
    engines: EngineSet, reference: Any, size: tuple[int, int], frames: int, guidance: tuple[float, float]
) -> None:
    wanted = clip(size, frames, guidance)
    assert difference(ours(engines, wanted), theirs(reference, wanted)) <= GATE


@pytest.mark.parametrize("chunk", [1, 2, 3, 5])
def test_the_same_frames_by_the_same_chunks(engines: EngineSet, reference: Any, chunk: int) -> None:
    """Chunks decide what a frame's decoder sees, so that another size gives another clip."""
    wanted = clip(frames=5)
    latents = ours(engines, wanted) / engines.model.latent_scale
    plan = plan_clip(engines, wanted.request.size)
    frames = decode_clip(plan, latents, chunk, lambda *_: None)
    expected = theirs(reference, wanted, "pt", chunk).movedim(1, -1)
    assert difference(frames, expected) <= 1e-4
    if chunk < 5:
        assert difference(frames, decode_clip(plan, latents, 5, lambda *_: None)) > 1e-3


@pytest.fixture(scope="module")
def expected(reference: Any) -> torch.Tensor:
    return theirs(reference, clip())


BASE = clip()


def asked(**changes: Any) -> Clip:
    return replace(BASE, request=replace(BASE.request, **changes))


def sampled(**changes: Any) -> Clip:
    return replace(BASE, denoising=replace(BASE.denoising, **changes))


@pytest.mark.parametrize(
    "wrong",
    [
        sampled(sampler=SamplerSettings(3, "euler")),
        sampled(seed=8),
        sampled(guidance_scale=3.05),
        sampled(min_guidance_scale=1.05),
        sampled(min_guidance_scale=3.0),
        asked(fps=8),
        asked(motion_bucket_id=128),
        asked(noise_aug_strength=0.03),
        asked(noise_aug_seed=8),
        asked(picture=painted(301, 260)),
    ],
    ids=[
        "one_step_too_few",
        "seed",
        "guidance",
        "first_guidance",
        "guidance_that_does_not_rise",
        "fps",
        "motion_bucket",
        "noise_augmentation",
        "its_seed",
        "picture",
    ],
)
def test_control_a_wrong_request_fails_the_gate(engines: EngineSet, expected: torch.Tensor, wrong: Clip) -> None:
    assert difference(ours(engines, wrong), expected) > GATE


def test_control_the_right_request_passes_it(engines: EngineSet, expected: torch.Tensor) -> None:
    assert difference(ours(engines, BASE), expected) <= GATE
    defaults = sampled(min_guidance_scale=None)
    assert difference(ours(engines, defaults), expected) <= GATE, "guidance rises from 1 unless one says otherwise"


def test_control_swapped_guidance_halves_fail_the_gate(
    engines: EngineSet, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    combine = StableVideoDiffusion.combine

    def swapped(self: StableVideoDiffusion, outputs: Mapping[str, torch.Tensor], scale: Any) -> torch.Tensor:
        return combine(self, {"prediction": outputs["prediction"].flip(0)}, scale)

    monkeypatch.setattr(StableVideoDiffusion, "combine", swapped)
    assert difference(ours(engines, BASE), expected) > GATE


@pytest.mark.parametrize("frames", [[1, 0, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0]], ids=str)
def test_control_permuted_frames_fail_the_gate(engines: EngineSet, expected: torch.Tensor, frames: list[int]) -> None:
    assert difference(ours(engines, BASE)[frames], expected) > GATE


@pytest.mark.parametrize(
    "layer",
    [
        "conv_in",
        "add_embedding.linear_1",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
        "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn2.to_out.0",
        "mid_block.attentions.0.time_pos_embed.linear_2",
        "mid_block.resnets.1.temporal_res_block.conv2",
        "up_blocks.1.attentions.1.temporal_transformer_blocks.0.ff_in.net.0.proj",
        "conv_out",
    ],
)
def test_control_one_layer_off_by_a_hundredth_fails_the_gate(
    engines: EngineSet, expected: torch.Tensor, layer: str
) -> None:
    weight = engines.model.part("unet", "fp32").get_submodule(layer).weight
    kept = weight.clone()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    try:
        weight += 1e-2 * weight.std() * noise
        assert difference(ours(engines, BASE), expected) > GATE
    finally:
        weight.copy_(kept)


@pytest.mark.parametrize("scheduler", sorted(set(SCHEDULERS) - {"euler"}))
def test_what_it_was_not_trained_for_is_refused_in_a_sentence(engines: EngineSet, scheduler: str) -> None:
    with pytest.raises(
        InputError, match=f"^Stable Video Diffusion is sampled by the scheduler euler, found {scheduler}.$"
    ):
        ours(engines, sampled(sampler=SamplerSettings(2, scheduler)))


def test_a_prompt_is_told_to_be_of_no_use_and_changes_nothing(engines: EngineSet) -> None:
    cache = ConditioningCache(None)
    plan = plan_clip(engines, BASE.request.size)
    quiet = encode_clip(plan, BASE.request, cache, lambda *_: None)
    told = encode_clip(plan, asked(prompt="a boat", negative_prompt="blurry").request, cache, lambda *_: None)
    assert quiet.notes == ()
    assert told.notes == ("Stable Video Diffusion has no text encoder: the prompts are not used.",)
    assert told.place == "memory"
    assert all(torch.equal(told.tensors[name], quiet.tensors[name]) for name in quiet.tensors)

"""Our clip is the one that diffusers' I2VGenXLPipeline makes, and what should differ does."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ..helpers.reference_clip import Clip, eager_engines, ours, painted

GATE = 1e-5
"""The greatest difference of final latents that is still the same clip."""


def clip(
    size: tuple[int, int] = (64, 64), frames: int = 4, guidance: float = 9.0, eta: float = 0.0, steps: int = 4
) -> Clip:
    picture = painted(150, 96) if size[0] >= size[1] else painted(96, 150)
    request = ClipRequest(picture, "a red boat drifts on a lake", "blurry, static", *size, frames, 8)
    return Clip(request, Denoising(seed=7, guidance_scale=guidance, sampler=SamplerSettings(steps, eta=eta)))


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> Iterator[Any]:
    """The published pipeline, repaired where current libraries broke it and made to draw no VAE sample."""
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
    from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    class WithTextModel(CLIPTextModel):
        """As before transformers 5.6, where the pipeline finds the last norm."""

        text_model = property(lambda self: self)

    text_encoder = CLIPTextModel.from_pretrained(tiny_folder / "text_encoder")
    if not hasattr(text_encoder, "text_model"):
        text_encoder = WithTextModel.from_pretrained(tiny_folder / "text_encoder")
    parts: dict[str, Any] = {
        "vae": AutoencoderKL.from_pretrained(tiny_folder / "vae", low_cpu_mem_usage=False),
        "text_encoder": text_encoder.eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer"),
        "image_encoder": CLIPVisionModelWithProjection.from_pretrained(tiny_folder / "image_encoder").eval(),
        "feature_extractor": CLIPImageProcessorPil.from_pretrained(tiny_folder / "feature_extractor"),
        "unet": I2VGenXLUNet.from_pretrained(tiny_folder / "unet", low_cpu_mem_usage=False),
        "scheduler": DDIMScheduler.from_pretrained(tiny_folder / "scheduler"),
    }
    pipeline = I2VGenXLPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
        yield pipeline


@pytest.fixture(scope="module")
def engines(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> EngineSet:
    return eager_engines(tiny_folder, tmp_path_factory.mktemp("store"))


def theirs(reference: Any, wanted: Clip) -> torch.Tensor:
    request, denoising = wanted.request, wanted.denoising
    latents = reference(
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        image=request.picture,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        target_fps=request.fps,
        num_inference_steps=denoising.sampler.steps,
        guidance_scale=denoising.guidance_scale,
        eta=denoising.sampler.eta,
        generator=torch.Generator().manual_seed(denoising.seed),
        output_type="latent",
    ).frames
    return latents[0].transpose(0, 1)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    assert one.shape == other.shape
    return (one - other).abs().max().item()


@pytest.mark.parametrize("guidance", [9.0, 1.0])
@pytest.mark.parametrize(
    ("size", "frames"), [((64, 64), 4), ((96, 64), 3), ((64, 128), 2), ((72, 88), 1)], ids=lambda value: str(value)
)
def test_the_same_latents(
    engines: EngineSet, reference: Any, size: tuple[int, int], frames: int, guidance: float
) -> None:
    wanted = clip(size, frames, guidance)
    assert difference(ours(engines, wanted), theirs(reference, wanted)) <= GATE


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_the_same_noise_on_the_way(engines: EngineSet, reference: Any, eta: float) -> None:
    wanted = clip((64, 72), 3, eta=eta)
    found = ours(engines, wanted)
    assert difference(found, theirs(reference, wanted)) <= GATE
    assert difference(found, ours(engines, clip((64, 72), 3))) > GATE


@pytest.fixture(scope="module")
def expected(reference: Any) -> torch.Tensor:
    return theirs(reference, clip())


@pytest.mark.parametrize(
    "wrong",
    [
        replace(clip(), denoising=replace(clip().denoising, sampler=SamplerSettings(3))),
        replace(clip(), request=replace(clip().request, fps=9)),
        replace(clip(), request=replace(clip().request, prompt="a red boat drifts on a pond")),
        replace(clip(), request=replace(clip().request, negative_prompt="")),
        replace(clip(), request=replace(clip().request, picture=painted(151, 96))),
        replace(clip(), denoising=replace(clip().denoising, seed=8)),
        replace(clip(), denoising=replace(clip().denoising, guidance_scale=9.1)),
    ],
    ids=["one_step_too_few", "fps", "prompt", "negative_prompt", "picture", "seed", "guidance"],
)
def test_control_a_wrong_request_fails_the_gate(engines: EngineSet, expected: torch.Tensor, wrong: Clip) -> None:
    assert difference(ours(engines, wrong), expected) > GATE


def test_control_the_right_request_passes_it(engines: EngineSet, expected: torch.Tensor) -> None:
    assert difference(ours(engines, clip()), expected) <= GATE


def test_control_swapped_guidance_halves_fail_the_gate(
    engines: EngineSet, expected: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    combine = I2VGenXL.combine

    def swapped(self: I2VGenXL, outputs: Mapping[str, torch.Tensor], guidance_scale: float) -> torch.Tensor:
        return combine(self, {"prediction": outputs["prediction"].flip(0)}, guidance_scale)

    monkeypatch.setattr(I2VGenXL, "combine", swapped)
    assert difference(ours(engines, clip()), expected) > GATE


@pytest.mark.parametrize("frames", [[1, 0, 2, 3], [3, 2, 1, 0], [1, 2, 3, 0]], ids=str)
def test_control_permuted_frames_fail_the_gate(engines: EngineSet, expected: torch.Tensor, frames: list[int]) -> None:
    assert difference(ours(engines, clip())[frames], expected) > GATE


@pytest.mark.parametrize(
    "layer",
    [
        "conv_in",
        "context_embedding.0",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
        "down_blocks.0.temp_convs.0.conv4.3",
        "mid_block.temp_attentions.0.transformer_blocks.0.attn1.to_q",
        "conv_out",
    ],
)
def test_control_one_layer_off_by_a_hundredth_fails_the_gate(
    engines: EngineSet, expected: torch.Tensor, layer: str
) -> None:
    unet = engines.model.part("unet", "fp32")
    weight = unet.get_submodule(layer).weight
    kept = weight.clone()
    noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    try:
        weight += 1e-2 * weight.std() * noise
        assert difference(ours(engines, clip()), expected) > GATE
    finally:
        weight.copy_(kept)

"""Our clip is the one that diffusers' WanImageToVideoPipeline makes, for each Wan, and what should differ does."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.denoising.schedulers import FLOW_SCHEDULERS, SCHEDULERS, SamplerSettings
from i2v_tensorrt.pipeline.dummies.wan import KINDS
from i2v_tensorrt.pipeline.media.image import crop_to_aspect
from i2v_tensorrt.pipeline.models.wan.wan22 import WanA14B
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip import decode_clip
from i2v_tensorrt.runtime.clip_plan import Denoising, plan_clip

from ..helpers.reference_clip import Clip, difference, eager_engines, ours, painted

GATE = 1e-5
"""The greatest difference, as a part of the greatest latent, that is still the same clip."""
SEED = 7
Of = Callable[[str], Any]


def clip(
    size: tuple[int, int] = (64, 64), frames: int = 9, guidance: float = 4.0, late: float | None = None, **sampler: Any
) -> Clip:
    request = ClipRequest(painted(300, 260), "a boat  in the sea", "ugly &amp; dull", *size, frames, 16)
    settings = SamplerSettings(**{"steps": 5, "scheduler": "unipc", **sampler})
    return Clip(request, Denoising(SEED, guidance, settings, late_guidance_scale=late))


def plain(kind: Any, folder: Path) -> Any:
    """Diffusers' network with its own forward, whose loading wants another package for these."""
    from safetensors.torch import load_file

    network = kind.from_config(json.loads((folder / "config.json").read_text("utf-8")))
    network.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return network.eval()


@pytest.fixture(scope="module")
def reference(tiny_wan: Callable[[str], Path]) -> Of:
    return cache(lambda kind: pipeline_of(tiny_wan(kind)))


def pipeline_of(folder: Path) -> Any:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanImageToVideoPipeline, WanTransformer3DModel
    from diffusers.pipelines.wan import pipeline_wan_i2v
    from transformers import CLIPImageProcessorPil, CLIPVisionModel, PreTrainedTokenizerFast, UMT5EncoderModel

    if not hasattr(pipeline_wan_i2v, "ftfy"):  # mends broken Unicode, of which there is none here
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=lambda text: text)  # pyright: ignore
    index = json.loads((folder / "model_index.json").read_text("utf-8"))
    parts: dict[str, Any] = {
        "tokenizer": PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"),
        "text_encoder": UMT5EncoderModel.from_pretrained(folder / "text_encoder").eval(),
        "vae": plain(AutoencoderKLWan, folder / "vae"),
        "scheduler": UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
        "boundary_ratio": index.get("boundary_ratio"),
        "expand_timesteps": index.get("expand_timesteps", False),
    }
    for name in ("transformer", "transformer_2"):
        if (folder / name).is_dir():
            parts[name] = plain(WanTransformer3DModel, folder / name)
    if (folder / "image_encoder").is_dir():
        parts["image_encoder"] = CLIPVisionModel.from_pretrained(folder / "image_encoder").eval()
        parts["image_processor"] = CLIPImageProcessorPil.from_pretrained(folder / "image_processor")
    pipeline = WanImageToVideoPipeline(**parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def engines(tiny_wan: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Of:
    return cache(lambda kind: eager_engines(tiny_wan(kind), tmp_path_factory.mktemp("store")))


def theirs(reference: Any, wanted: Clip, output_type: str = "latent") -> torch.Tensor:
    """Latents [frames, channels, h, w] in the sampler's scale, or frames [frames, 3, height, width]."""
    request, denoising = wanted.request, wanted.denoising
    size = (request.width, request.height)
    found = reference(
        image=crop_to_aspect(request.picture, *size).resize(size, Image.Resampling.LANCZOS),
        prompt=request.prompt,
        negative_prompt=request.negative_prompt,
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        num_inference_steps=denoising.sampler.steps,
        guidance_scale=denoising.guidance_scale,
        guidance_scale_2=denoising.late_guidance_scale,
        generator=torch.Generator().manual_seed(denoising.seed),
        output_type=output_type,
    ).frames
    return found[0].transpose(0, 1) if output_type == "latent" else found[0]


@pytest.mark.parametrize("guidance", [4.0, 1.0])
@pytest.mark.parametrize(("size", "frames"), [((64, 64), 9), ((96, 64), 5), ((64, 128), 1)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_latents(
    engines: Of, reference: Of, kind: str, size: tuple[int, int], frames: int, guidance: float
) -> None:
    wanted = clip(size, frames, guidance)
    assert difference(ours(engines(kind), wanted), theirs(reference(kind), wanted)) <= GATE


@pytest.mark.parametrize("chunk", [1, 4, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_frames_whatever_the_chunk(engines: Of, reference: Of, kind: str, chunk: int) -> None:
    wanted = clip(frames=13)
    latents = engines(kind).model.to_latent(ours(engines(kind), wanted))
    frames = decode_clip(plan_clip(engines(kind), wanted.request.size), latents, chunk, lambda *_: None)
    assert difference(frames, theirs(reference(kind), wanted, "pt").movedim(1, -1)) <= 1e-4


BASE = clip(late=2.0)


@pytest.fixture(scope="module")
def expected(reference: Of) -> Of:
    return cache(lambda kind: theirs(reference(kind), asked_of(kind, BASE)))


def asked_of(kind: str, wanted: Clip) -> Clip:
    """The clip as diffusers takes it: a second guidance is for two experts alone."""
    late = wanted.denoising.late_guidance_scale if kind == "a14b" else None
    return replace(wanted, denoising=replace(wanted.denoising, late_guidance_scale=late))


def asked(**changes: Any) -> Clip:
    return replace(BASE, request=replace(BASE.request, **changes))


def sampled(**changes: Any) -> Clip:
    return replace(BASE, denoising=replace(BASE.denoising, **changes))


@pytest.mark.parametrize("kind", KINDS)
def test_control_the_right_request_passes_the_gate(engines: Of, expected: Of, kind: str) -> None:
    assert difference(ours(engines(kind), BASE), expected(kind)) <= GATE
    own_shift = sampled(sampler=SamplerSettings(5, "unipc", shift=3.0))
    assert difference(ours(engines(kind), own_shift), expected(kind)) <= GATE


@pytest.mark.parametrize(
    "wrong",
    [
        sampled(sampler=SamplerSettings(4, "unipc")),
        sampled(sampler=SamplerSettings(5, "euler")),
        sampled(sampler=SamplerSettings(5, "unipc", shift=3.1)),
        sampled(seed=8),
        sampled(guidance_scale=4.1),
        asked(prompt="a boat in the sea s"),
        asked(negative_prompt="ugly"),
        asked(picture=painted(301, 260)),
    ],
    ids=["one_step_too_few", "scheduler", "shift", "seed", "guidance", "prompt", "negative_prompt", "picture"],
)
@pytest.mark.parametrize("kind", KINDS)
def test_control_a_wrong_request_is_seen(engines: Of, expected: Of, kind: str, wrong: Clip) -> None:
    assert difference(ours(engines(kind), wrong), expected(kind)) > GATE


@pytest.mark.parametrize("scale", [None, 2.1])
def test_control_the_second_experts_guidance_counts(engines: Of, expected: Of, scale: float | None) -> None:
    assert difference(ours(engines("a14b"), sampled(late_guidance_scale=scale)), expected("a14b")) > GATE


@pytest.mark.parametrize("denoiser", WanA14B.denoisers)
def test_control_one_expert_for_all_steps_is_seen(
    engines: Of, expected: Of, monkeypatch: pytest.MonkeyPatch, denoiser: str
) -> None:
    monkeypatch.setattr(WanA14B, "select_denoiser", lambda *_: denoiser)
    assert difference(ours(engines("a14b"), BASE), expected("a14b")) > GATE


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((kind, "text_states") for kind in KINDS),
        ("wan21", "image_states"),
        ("wan21", "condition"),
        ("a14b", "condition"),
        ("ti2v", "first_frame"),
    ],
)
def test_control_without_one_part_of_the_conditioning_is_seen(
    engines: Of, expected: Of, monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    family = type(engines(kind).model)
    prepare = family.prepare_input

    def blind(self: Any, x: torch.Tensor, t: torch.Tensor, given: Any) -> dict[str, torch.Tensor]:
        return prepare(self, x, t, {**given, name: torch.zeros_like(given[name])})

    monkeypatch.setattr(family, "prepare_input", blind)
    assert difference(ours(engines(kind), BASE), expected(kind)) > GATE


@pytest.mark.parametrize("scheduler", sorted({*SCHEDULERS} - {*FLOW_SCHEDULERS}))
def test_what_it_was_not_trained_for_is_refused_in_a_sentence(engines: Of, scheduler: str) -> None:
    told = f"^Wan 2.1 is sampled by the scheduler unipc or euler or dpmpp_2m, found {scheduler}.$"
    with pytest.raises(InputError, match=told):
        ours(engines("wan21"), sampled(sampler=SamplerSettings(2, scheduler)))

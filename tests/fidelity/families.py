"""The families as the contract suite sees them: a new one is a row here and a tiny checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import torch
from PIL import Image

from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import TinySizes, write_tiny_checkpoint
from i2v_tensorrt.pipeline.dummies.svd import TinySvdSizes, write_tiny_svd
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.media.image import crop_to_aspect
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising

from ..helpers.reference_clip import Clip, painted
from .dynamicrafter import DYNAMICRAFTER, TOONCRAFTER, dynamicrafter
from .family import SEED, Family, changed, chunk, of_size, plane, sampler, volume
from .published import published_i2vgen_xl, published_svd, published_wan

WAN_LAYERS = (
    "patch_embedding",
    "condition_embedder.text_embedder.linear_1",
    "blocks.0.attn1.to_q",
    "blocks.1.attn2.to_out.0",
    "blocks.0.ffn.net.2",
    "proj_out",
)


# I2VGen-XL


def ask_i2vgen_xl(clip: Clip) -> dict[str, Any]:
    request, denoising = clip.request, clip.denoising
    return {
        "image": request.picture,
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "target_fps": request.fps,
        "guidance_scale": denoising.guidance_scale,
        "eta": denoising.sampler.eta,
    }


I2VGEN_XL_CLIP = Clip(
    ClipRequest(painted(150, 96), "a red boat drifts on a lake", "blurry, static", 64, 64, 4, 8),
    Denoising(SEED, 9.0, SamplerSettings(4)),
)
I2VGEN_XL = Family(
    write=write_tiny_checkpoint,
    published=published_i2vgen_xl,
    ask=ask_i2vgen_xl,
    clip=I2VGEN_XL_CLIP,
    sizes=(((64, 64), 4), ((96, 64), 3), ((64, 128), 2), ((72, 88), 1)),
    guidance=({"guidance_scale": 9.0}, {"guidance_scale": 1.0}),
    same=(I2VGEN_XL_CLIP,),
    wrong={
        "one_step_too_few": sampler(I2VGEN_XL_CLIP, steps=3),
        "eta": sampler(I2VGEN_XL_CLIP, eta=0.3),
        "fps": changed(I2VGEN_XL_CLIP, fps=9),
        "prompt": changed(I2VGEN_XL_CLIP, prompt="a red boat drifts on a pond"),
        "negative_prompt": changed(I2VGEN_XL_CLIP, negative_prompt=""),
        "picture": changed(I2VGEN_XL_CLIP, picture=painted(151, 96)),
        "seed": changed(I2VGEN_XL_CLIP, seed=8),
        "guidance": changed(I2VGEN_XL_CLIP, guidance_scale=9.1),
    },
    layers=(
        "conv_in",
        "context_embedding.0",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
        "down_blocks.0.temp_convs.0.conv4.3",
        "mid_block.temp_attentions.0.transformer_blocks.0.attn1.to_q",
        "conv_out",
    ),
    network="unet",
    chunks=(1, 3),
    fused={
        "core": [volume(*sizes) for sizes in ((2, 4, 8, 8), (2, 1, 16, 8), (1, 5, 8, 24), (2, 17, 8, 8))],
        "vae_decoder": [chunk(1, 8, 8), chunk(3, 8, 12)],
    },
    tolerance=2e-6,
    wide=lambda folder: write_tiny_checkpoint(folder, TinySizes(channels=(64, 128), head_dim=64, width=64)),
    targets=("text_encoder", "image_encoder", "vae_encoder", "core", "vae_decoder"),
)


# Stable Video Diffusion


def ask_svd(clip: Clip) -> dict[str, Any]:
    """One generator draws the picture's noise and then the clip's, as the published pipeline has it."""
    request, denoising = clip.request, clip.denoising
    return {
        "image": crop_to_aspect(request.picture, request.width, request.height),
        "fps": request.fps,
        "motion_bucket_id": request.motion_bucket_id,
        "noise_aug_strength": request.noise_aug_strength,
        "min_guidance_scale": denoising.min_guidance_scale,
        "max_guidance_scale": denoising.guidance_scale,
    }


SVD_CLIP = Clip(
    ClipRequest(painted(300, 260), "", "", 64, 64, 4, 7, noise_aug_seed=SEED),
    Denoising(SEED, 3.0, SamplerSettings(4, "euler"), 1.0),
)
SVD = Family(
    write=write_tiny_svd,
    published=published_svd,
    ask=ask_svd,
    clip=SVD_CLIP,
    sizes=(((64, 64), 4), ((96, 64), 3), ((64, 128), 2), ((72, 88), 2)),
    guidance=tuple(
        {"min_guidance_scale": least, "guidance_scale": most} for least, most in ((1, 3), (2.5, 2.5), (1, 1))
    ),
    same=(SVD_CLIP, changed(SVD_CLIP, min_guidance_scale=None)),
    wrong={
        "one_step_too_few": sampler(SVD_CLIP, steps=3),
        "seed": changed(SVD_CLIP, seed=8),
        "guidance": changed(SVD_CLIP, guidance_scale=3.05),
        "first_guidance": changed(SVD_CLIP, min_guidance_scale=1.05),
        "guidance_that_does_not_rise": changed(SVD_CLIP, min_guidance_scale=3.0),
        "fps": changed(SVD_CLIP, fps=8),
        "motion_bucket": changed(SVD_CLIP, motion_bucket_id=128),
        "noise_augmentation": changed(SVD_CLIP, noise_aug_strength=0.03),
        "its_seed": changed(SVD_CLIP, noise_aug_seed=8),
        "picture": changed(SVD_CLIP, picture=painted(301, 260)),
    },
    layers=(
        "conv_in",
        "add_embedding.linear_1",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v",
        "down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn2.to_out.0",
        "mid_block.attentions.0.time_pos_embed.linear_2",
        "mid_block.resnets.1.temporal_res_block.conv2",
        "up_blocks.1.attentions.1.temporal_transformer_blocks.0.ff_in.net.0.proj",
        "conv_out",
    ),
    network="unet",
    chunks=(1, 2, 3, 5),
    frames_first=True,
    chunk_decides=True,
    fused={
        "core": [volume(*sizes) for sizes in ((2, 4, 8, 8), (2, 1, 16, 8), (1, 5, 8, 24), (2, 25, 8, 8))],
        "vae_decoder": [chunk(4, 8, 8), chunk(1, 9, 6), chunk(3, 5, 16)],
    },
    wide=lambda folder: write_tiny_svd(folder, TinySvdSizes(channels=(64, 128), heads=(1, 2), width=64)),
    engines={
        "core": [
            volume(1, 1, 8, 8),
            volume(2, 1, 8, 12),
            volume(2, 25, 8, 10),
            volume(1, 3, 16, 24),
            volume(2, 6, 24, 8),
        ],
        "vae_decoder": [chunk(1, 8, 8), chunk(5, 8, 16), chunk(14, 9, 8), chunk(9, 11, 13), chunk(2, 24, 8)],
        "vae_encoder": [plane(8, 9), plane(16, 8), plane(11, 13), plane(9, 24)],
    },
    targets=("core", "vae_decoder", "vae_encoder", "image_encoder"),
)


# Wan


def ask_wan(clip: Clip) -> dict[str, Any]:
    request, denoising = clip.request, clip.denoising
    size = (request.width, request.height)
    return {
        "image": crop_to_aspect(request.picture, *size).resize(size, Image.Resampling.LANCZOS),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "guidance_scale": denoising.guidance_scale,
        "guidance_scale_2": denoising.late_guidance_scale,
    }


def wan(kind: str, late: float | None = None, component: str = "core") -> Family:
    """A Wan; a second guidance is for two experts alone."""
    request = ClipRequest(painted(300, 260), "a boat  in the sea", "ugly &amp; dull", 64, 64, 9, 16)
    clip = Clip(request, Denoising(SEED, 4.0, SamplerSettings(5, "unipc"), late_guidance_scale=late))
    second = {
        "late_guidance": changed(clip, late_guidance_scale=2.1),
        "no_late_guidance": changed(clip, late_guidance_scale=None),
    }
    sizes = TinyWanSizes(heads=2, head_dim=128, width=64)
    return Family(
        write=lambda folder: write_tiny_wan(folder, kind),
        published=published_wan,
        ask=ask_wan,
        clip=clip,
        sizes=(((64, 64), 9), ((96, 64), 5), ((64, 128), 1)),
        guidance=(
            {"guidance_scale": 4.0, "late_guidance_scale": None},
            {"guidance_scale": 1.0, "late_guidance_scale": None},
        ),
        same=(clip, sampler(clip, shift=3.0)),
        wrong={
            "one_step_too_few": sampler(clip, steps=4),
            "scheduler": sampler(clip, scheduler="euler"),
            "shift": sampler(clip, shift=3.1),
            "seed": changed(clip, seed=8),
            "guidance": changed(clip, guidance_scale=4.1),
            "prompt": changed(clip, prompt="a boat in the sea s"),
            "negative_prompt": changed(clip, negative_prompt="ugly"),
            "picture": changed(clip, picture=painted(301, 260)),
            **(second if late else {}),
        },
        layers=WAN_LAYERS,
        network="transformer",
        chunks=(1, 4, 100),
        wide=lambda folder: write_tiny_wan(folder, kind, sizes),
        engines={
            component: [
                volume(1, 1, 4, 4),
                volume(2, 1, 8, 12),
                volume(2, 21, 4, 6),
                volume(1, 3, 16, 24),
                volume(2, 6, 10, 4),
            ]
        },
        targets=(component, "image_encoder") if kind == "wan21" else (component,),
    )


FAMILIES: Mapping[str, Family] = {
    "i2vgen_xl": I2VGEN_XL,
    "svd": SVD,
    "wan21": wan("wan21"),
    "a14b": wan("a14b", 2.0, "core_late"),
    "ti2v": wan("ti2v"),
    "dynamicrafter": DYNAMICRAFTER,
    "dynamicrafter_256": dynamicrafter("256"),
    "dynamicrafter_1024": dynamicrafter("1024"),
    "dynamicrafter_interp": dynamicrafter("interp", painted(152, 96)),
    "tooncrafter": TOONCRAFTER,
}


def each(of: Callable[[Family], Any]) -> list[tuple[str, Any]]:
    """Every family's name with each of its own items."""
    return [(name, item) for name, family in FAMILIES.items() for item in of(family)]


def asked(family: Family) -> list[Clip]:
    """Every size with every guidance."""
    return [
        changed(of_size(family.clip, *size), **guidance) for size, guidance in product(family.sizes, family.guidance)
    ]


def theirs(family: Family, pipeline: Any, clip: Clip, **options: Any) -> torch.Tensor:
    """Latents [frames, channels, h, w] of the published pipeline, or what `output_type` says."""
    request, denoising = clip.request, clip.denoising
    found = pipeline(
        **family.ask(clip),
        width=request.width,
        height=request.height,
        num_frames=request.num_frames,
        num_inference_steps=denoising.sampler.steps,
        generator=torch.Generator().manual_seed(denoising.seed),
        **{"output_type": "latent", **options},
    ).frames[0]
    return found if family.frames_first or "output_type" in options else found.transpose(0, 1)

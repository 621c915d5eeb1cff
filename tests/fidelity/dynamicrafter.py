"""DynamiCrafter as the contract suite sees it; its reference stands in for a published pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from i2v_tensorrt.benchmarks.dynamicrafter_reference import ReferencePipeline, reference_pipeline
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.dummies.dynamicrafter import TinyDynamiCrafterSizes, write_tiny_dynamicrafter
from i2v_tensorrt.pipeline.media.image import crop_to_aspect
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising

from ..helpers.reference_clip import Clip, painted
from ..helpers.tooncrafter_reference import PublishedVae
from .family import SEED, Family, changed, chunk, sampler, volume


def ask_dynamicrafter(clip: Clip) -> dict[str, Any]:
    request, denoising = clip.request, clip.denoising
    size, last = (request.width, request.height), request.last_picture
    return {
        "image": crop_to_aspect(request.picture, *size),
        "last_image": None if last is None else crop_to_aspect(last, *size),
        "prompt": request.prompt,
        "negative_prompt": request.negative_prompt,
        "fs": request.fps,
        "guidance_scale": denoising.guidance_scale,
        "eta": denoising.sampler.eta,
    }


def dynamicrafter(kind: str, last: Image.Image | None = None, **fields: Any) -> Family:
    """A DynamiCrafter of one of the dummies' kinds."""
    request = ClipRequest(painted(150, 96), "a red boat drifts on a lake", "", 64, 64, 16, 15, last_picture=last)
    clip = Clip(request, Denoising(SEED, 7.5, SamplerSettings(3, eta=1.0)))
    return Family(
        **{
            "write": lambda folder: write_tiny_dynamicrafter(folder, kind),
            "published": reference_pipeline,
            "ask": ask_dynamicrafter,
            "clip": clip,
            "sizes": (((64, 64), 16),),
            "guidance": ({"guidance_scale": 7.5},),
            "same": (clip,),
            "wrong": {
                "one_step_too_few": sampler(clip, steps=2),
                "eta": sampler(clip, eta=0.9),
                "fps": changed(clip, fps=16),
                "prompt": changed(clip, prompt="a red boat drifts on a pond"),
                "negative_prompt": changed(clip, negative_prompt="ugly"),
                "picture": changed(clip, picture=painted(151, 96)),
                "seed": changed(clip, seed=8),
                "guidance": changed(clip, guidance_scale=7.6),
                **({"last_picture": changed(clip, last_picture=painted(153, 96))} if last else {}),
            },
            "layers": (),
            "network": "unet",
            "chunks": (3,),
            "decoded_frames": 16,
            "small": {**volume(2, 16, 8, 16), **chunk(4, 8, 16)},
            "moved": volume(2, 16, 8, 16),
            **fields,
        }
    )


DYNAMICRAFTER = dynamicrafter(
    "512",
    sizes=(((64, 64), 16), ((128, 64), 16), ((64, 192), 16)),
    guidance=({"guidance_scale": 7.5}, {"guidance_scale": 1.0}),
    layers=(
        "conv_in",
        "fps_embedding.linear_2",
        "transformer_in.proj_in",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k_ip",
        "mid_block.attentions.0.transformer_blocks.0.attn2.to_v_ip",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v",
        "down_blocks.1.temp_convs.0.conv4.3",
        "up_blocks.3.temp_attentions.0.transformer_blocks.0.attn1.to_q",
        "conv_out",
    ),
    chunks=(1, 3),
    engines={
        "core": [volume(1, 16, 8, 8), volume(2, 16, 8, 24), volume(1, 16, 24, 8), volume(2, 16, 24, 16)],
        "vae_decoder": [chunk(1, 8, 8), chunk(3, 8, 12), chunk(2, 9, 11), chunk(5, 16, 8)],
    },
    fused={
        "core": [volume(2, 16, 8, 8), volume(1, 16, 8, 24)],
        "vae_decoder": [chunk(1, 8, 8), chunk(3, 8, 12)],
    },
    wide=lambda folder: write_tiny_dynamicrafter(
        folder, sizes=TinyDynamiCrafterSizes(channels=(64, 128, 128, 128), head_dim=64, width=64)
    ),
    targets=("text_encoder", "image_encoder", "vae_encoder", "core", "vae_decoder"),
)


def reference_tooncrafter(folder: Path) -> ReferencePipeline:
    return reference_pipeline(folder, PublishedVae(folder / "vae"))


TOONCRAFTER = dynamicrafter(
    "tooncrafter",
    painted(152, 96),
    published=reference_tooncrafter,
    engines={"vae_decoder": [chunk(16, 8, 8), chunk(14, 8, 16), chunk(15, 9, 11), chunk(16, 16, 8)]},
    small=chunk(16, 8, 8),
    targets=("vae_encoder", "vae_decoder"),
    wide=lambda folder: write_tiny_dynamicrafter(folder, "tooncrafter"),
)

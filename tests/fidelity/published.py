"""Diffusers' own pipelines over a checkpoint, its networks loaded by diffusers."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any


def published_i2vgen_xl(folder: Path) -> Any:
    """Repaired where current libraries broke it, and made to draw no VAE sample."""
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLPipeline, I2VGenXLUNet
    from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

    class WithTextModel(CLIPTextModel):
        """As before transformers 5.6, where the pipeline finds the last norm."""

        text_model = property(lambda self: self)

    class WithoutNoise(AutoencoderKL):
        def encode(self, *arguments: Any, **options: Any) -> Any:
            found: Any = super().encode(*arguments, **options)
            found.latent_dist.sample = lambda generator=None: found.latent_dist.mode()
            return found

    text_encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    if not hasattr(text_encoder, "text_model"):
        text_encoder = WithTextModel.from_pretrained(folder / "text_encoder")
    parts: dict[str, Any] = {
        "vae": WithoutNoise.from_pretrained(folder / "vae", low_cpu_mem_usage=False),
        "text_encoder": text_encoder.eval(),
        "tokenizer": CLIPTokenizer.from_pretrained(folder / "tokenizer"),
        "image_encoder": CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval(),
        "feature_extractor": CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor"),
        "unet": I2VGenXLUNet.from_pretrained(folder / "unet", low_cpu_mem_usage=False),
        "scheduler": DDIMScheduler.from_pretrained(folder / "scheduler"),
    }
    return I2VGenXLPipeline(**parts)


def published_svd(folder: Path) -> Any:
    from diffusers import (
        AutoencoderKLTemporalDecoder,
        EulerDiscreteScheduler,
        StableVideoDiffusionPipeline,
        UNetSpatioTemporalConditionModel,
    )
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    parts: dict[str, Any] = {
        "vae": AutoencoderKLTemporalDecoder.from_pretrained(folder / "vae", low_cpu_mem_usage=False),
        "image_encoder": CLIPVisionModelWithProjection.from_pretrained(folder / "image_encoder").eval(),
        "feature_extractor": CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor"),
        "unet": UNetSpatioTemporalConditionModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False),
        "scheduler": EulerDiscreteScheduler.from_pretrained(folder / "scheduler"),
    }
    return StableVideoDiffusionPipeline(**parts)


def plain(kind: Any, folder: Path) -> Any:
    """Diffusers' network with its own forward, whose loading wants another package for these."""
    from safetensors.torch import load_file

    network = kind.from_config(json.loads((folder / "config.json").read_text("utf-8")))
    network.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    return network.eval()


def published_wan(folder: Path) -> Any:
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
    return WanImageToVideoPipeline(**parts)

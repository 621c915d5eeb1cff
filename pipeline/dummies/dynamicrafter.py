"""A tiny DynamiCrafter of random weights in the layout that `run.py convert` writes, made offline in a second."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .i2vgen_xl import (
    wake_temporal_convolutions,
    write_byte_tokenizer,
    write_checkpoint,
    write_json,
    write_text,
    write_vision,
)

KINDS = ("256", "512", "1024", "interp")
"""By the side of the published clips; the last goes from a first picture to a last one, at 512."""
SCHEDULER: dict[str, Any] = {
    "_class_name": "DDIMScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "clip_sample": False,
    "set_alpha_to_one": False,
}
FROM_NOISE = {
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
    "guidance_rescale": 0.7,
}
KIND_SCHEDULER: Mapping[str, Mapping[str, Any]] = {
    "256": {"prediction_type": "epsilon", "timestep_spacing": "leading", "steps_offset": 1},
    "512": {**FROM_NOISE, "dynamic_rescale_base": 0.7},
    "1024": {**FROM_NOISE, "dynamic_rescale_base": 0.3},
    "interp": {**FROM_NOISE, "dynamic_rescale_base": 0.7},
}
INDEX: dict[str, Any] = {
    "_class_name": "DynamiCrafterPipeline",
    "image_encoder": ["transformers", "CLIPVisionModel"],
    "image_projection": ["i2v_tensorrt", "DynamiCrafterImageProjection"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["i2v_tensorrt", "DynamiCrafterUNet"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FRAMES, GROUPS = 16, 8


@dataclass(frozen=True)
class TinyDynamiCrafterSizes:
    """The widths that matter; the numbers of levels and layers are the published ones."""

    channels: tuple[int, ...] = (32, 64, 64, 64)
    head_dim: int = 32
    width: int = 32
    tokens: int = 2
    """Of the picture, for each frame."""
    vae_channels: tuple[int, ...] = (16, 16, 32, 32)
    picture: int = 32
    patch: int = 8


def write_tiny_dynamicrafter(
    folder: Path, kind: str = "512", sizes: TinyDynamiCrafterSizes | None = None, seed: int = 0
) -> Path:
    """Writes a checkpoint of one of `KINDS` into `folder` (made if missing) and returns it; same seed, same weights.

    Raises StorageError when the disk refuses; a folder made here goes again.
    """
    chosen = sizes or TinyDynamiCrafterSizes()

    def write(into: Path) -> None:
        _write_diffusion(into, kind, chosen)
        write_text(into, chosen.width)
        write_vision(into, chosen.width, chosen.picture, chosen.patch, projection=False)
        write_byte_tokenizer(into / "tokenizer")

    return write_checkpoint(folder, write, index_of(kind), seed)


def index_of(kind: str) -> dict[str, Any]:
    """Content of model_index.json of one of `KINDS`."""
    return {**INDEX, "interpolates": True} if kind == "interp" else dict(INDEX)


def _write_diffusion(folder: Path, kind: str, sizes: TinyDynamiCrafterSizes) -> None:
    from diffusers import AutoencoderKL

    from ..models.dynamicrafter.stored import DynamiCrafterImageProjection, DynamiCrafterUNet

    unet = DynamiCrafterUNet(
        block_out_channels=sizes.channels,
        cross_attention_dim=sizes.width,
        attention_head_dim=sizes.head_dim,
        norm_num_groups=GROUPS,
    )
    wake_temporal_convolutions(unet)
    unet.save_pretrained(folder / "unet")
    projection = DynamiCrafterImageProjection(
        embed_dims=sizes.width,
        output_dims=sizes.width,
        hidden_dims=sizes.width,
        depth=2,
        dim_head=sizes.head_dim,
        heads=2,
        num_queries=sizes.tokens * FRAMES,
    )
    projection.save_pretrained(folder / "image_projection")
    levels = len(sizes.vae_channels)
    settings: dict[str, Any] = {
        "block_out_channels": sizes.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": GROUPS,
        "scaling_factor": 0.18215,
        "sample_size": 64,
    }
    AutoencoderKL(**settings).save_pretrained(folder / "vae")
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **KIND_SCHEDULER[kind]})

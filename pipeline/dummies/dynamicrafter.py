"""A tiny DynamiCrafter of random weights in the layout that `run.py convert` writes, made offline in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.dynamicrafter.published_settings import KIND_SCHEDULER, SCHEDULER, TOONCRAFTER, index_of
from ..models.dynamicrafter.specs import REFERENCE_VAE
from .i2vgen_xl import (
    wake_temporal_convolutions,
    write_byte_tokenizer,
    write_checkpoint,
    write_json,
    write_text,
    write_vision,
)

PARTS = {
    "image_encoder": ["transformers", "CLIPVisionModel"],
    "image_projection": ["i2v_tensorrt", "DynamiCrafterImageProjection"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["i2v_tensorrt", "DynamiCrafterUNet"],
    "vae": ["diffusers", "AutoencoderKL"],
}
FRAMES = 16


@dataclass(frozen=True)
class TinyDynamiCrafterSizes:
    """The widths that matter; the numbers of levels and layers are the published ones."""

    channels: tuple[int, ...] = (32, 64, 64, 64)
    head_dim: int = 32
    width: int = 32
    groups: int = 8
    tokens: int = 2
    """Of the picture, for each frame."""
    vae_channels: tuple[int, ...] = (16, 16, 32, 32)
    reference_vae_channels: tuple[int, ...] = (32, 32, 64, 64)
    """Of ToonCrafter, whose VAE has norms of 32 groups."""
    picture: int = 32
    patch: int = 8


def write_tiny_dynamicrafter(
    folder: Path, kind: str = "512", sizes: TinyDynamiCrafterSizes | None = None, seed: int = 0
) -> Path:
    """Writes a checkpoint of one of the kinds of `published_settings` into `folder` (made if missing), and returns it.

    The same seed gives the same weights. Raises StorageError when the disk refuses; a folder made here goes again.
    """
    chosen = sizes or TinyDynamiCrafterSizes()

    def write(into: Path) -> None:
        _write_diffusion(into, kind, chosen)
        write_text(into, chosen.width)
        write_vision(into, chosen.width, chosen.picture, chosen.patch, projection=False)
        write_byte_tokenizer(into / "tokenizer")

    vae = {"vae": ["i2v_tensorrt", REFERENCE_VAE]} if kind == TOONCRAFTER else {}
    return write_checkpoint(folder, write, {**index_of(kind), **PARTS, **vae}, seed)


def _write_diffusion(folder: Path, kind: str, sizes: TinyDynamiCrafterSizes) -> None:
    from ..models.dynamicrafter.stored import DynamiCrafterImageProjection, DynamiCrafterUNet

    unet = DynamiCrafterUNet(
        block_out_channels=sizes.channels,
        cross_attention_dim=sizes.width,
        attention_head_dim=sizes.head_dim,
        norm_num_groups=sizes.groups,
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
    (_write_reference_vae if kind == TOONCRAFTER else _write_vae)(folder / "vae", sizes)
    (folder / "scheduler").mkdir(exist_ok=True)
    write_json(folder / "scheduler" / "scheduler_config.json", {**SCHEDULER, **KIND_SCHEDULER[kind]})


def _write_vae(folder: Path, sizes: TinyDynamiCrafterSizes) -> None:
    from diffusers import AutoencoderKL

    levels = len(sizes.vae_channels)
    settings: dict[str, Any] = {
        "block_out_channels": sizes.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
        "layers_per_block": 1,
        "norm_num_groups": sizes.groups,
        "scaling_factor": 0.18215,
        "sample_size": 64,
    }
    AutoencoderKL(**settings).save_pretrained(folder)


def _write_reference_vae(folder: Path, sizes: TinyDynamiCrafterSizes) -> None:
    from ..models.dynamicrafter.stored import ToonCrafterVae

    vae = ToonCrafterVae(block_out_channels=sizes.reference_vae_channels)
    _wake_reference_layers(vae)
    vae.save_pretrained(folder)


def _wake_reference_layers(vae: Any) -> None:
    """Gives the layers that see references random weights in place of the zeros that training begins with."""
    import torch

    for parameter in vae.decoder.attn_refinement.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)

"""A tiny Stable Video Diffusion of random weights in the published layout, made offline in a second."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..models.svd import single_file
from .i2vgen_xl import write_checkpoint, write_feature_extractor, write_vision

SCHEDULER = {name: value for name, value in single_file.SCHEDULER.items() if name != "_class_name"}
INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}
PICTURE, PATCH = 224, 56
"""The published pipeline has the side of CLIP's picture in its code."""


@dataclass(frozen=True)
class TinySvdSizes:
    """The widths that matter; channels are multiples of 32, which the networks' norms ask for."""

    channels: tuple[int, ...] = (32, 64)
    heads: tuple[int, ...] = (4, 8)
    width: int = 32
    num_frames: int = 4
    vae_channels: tuple[int, ...] = (32, 32, 32, 32)
    layers: int = 1
    """Residual blocks of a level of the UNet."""


def write_tiny_svd(folder: Path, sizes: TinySvdSizes | None = None, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` (made if missing) and returns it; the same seed gives the same weights.

    Raises StorageError when the disk refuses; a folder made here goes again.
    """
    chosen = sizes or TinySvdSizes()

    def write(into: Path) -> None:
        _write_diffusion(into, chosen)
        write_vision(into, chosen.width, PICTURE, PATCH)
        write_feature_extractor(into, PICTURE)

    return write_checkpoint(folder, write, INDEX, seed)


def _write_diffusion(folder: Path, sizes: TinySvdSizes) -> None:
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler, UNetSpatioTemporalConditionModel

    attention = len(sizes.channels) - 1
    unet = UNetSpatioTemporalConditionModel(
        sample_size=8,
        block_out_channels=sizes.channels,
        layers_per_block=sizes.layers,
        down_block_types=(*["CrossAttnDownBlockSpatioTemporal"] * attention, "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", *["CrossAttnUpBlockSpatioTemporal"] * attention),
        cross_attention_dim=sizes.width,
        num_attention_heads=sizes.heads,
        addition_time_embed_dim=sizes.channels[0],
        projection_class_embeddings_input_dim=3 * sizes.channels[0],
        num_frames=sizes.num_frames,
    )
    levels = len(sizes.vae_channels)
    settings: dict[str, Any] = {
        "block_out_channels": sizes.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "latent_channels": 4,
        "layers_per_block": 1,
        "scaling_factor": 0.18215,
        "sample_size": 64,
    }
    vae = AutoencoderKLTemporalDecoder(**settings)
    for name, network in (("unet", unet), ("vae", vae)):
        _tell_mixers_apart(network)
        network.save_pretrained(folder / name)
    EulerDiscreteScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


def _tell_mixers_apart(network: Any) -> None:
    """All start with the same share of space and time, by which a test would not see one in another's place."""
    import torch

    for name, parameter in network.named_parameters():
        if name.endswith("mix_factor"):
            torch.nn.init.normal_(parameter)

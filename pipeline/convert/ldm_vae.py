"""The picture VAE in the names of latent diffusion's files, by diffusers' own map."""

from __future__ import annotations

from typing import Any

import torch

from ..models.checkpoints.part_plan import PartPlan, fitted, shapes_of
from ..models.checkpoints.tensor_files import Tensors
from .other_parts import Wanted

VAE = Wanted(("AutoencoderKL",), "stabilityai/stable-diffusion-2-1 or stabilityai/sd-vae-ft-mse")
SCALING_FACTOR = 0.18215


def vae_of(found: Tensors, groups: int = 32) -> PartPlan:
    """The plan of a VAE from its tensors, without their prefix."""
    from diffusers import AutoencoderKL
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    widths = [found[name].shape[0] for name in _first_of_each_level(found)]
    config: dict[str, Any] = {
        "_class_name": "AutoencoderKL",
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "latent_channels": found["post_quant_conv.weight"].shape[0],
        "layers_per_block": sum(name.startswith("encoder.down.0.block.") and "conv1.w" in name for name in found),
        "norm_num_groups": groups,
        "scaling_factor": SCALING_FACTOR,
        "sample_size": 256,
    }
    named: dict[str, torch.Tensor] = convert_ldm_vae_checkpoint(dict(found), config)
    shapes = shapes_of(AutoencoderKL, config)
    return PartPlan("diffusers", "AutoencoderKL", config, fitted("the VAE", shapes, named))


def _first_of_each_level(found: Tensors) -> list[str]:
    names = [f"encoder.down.{level}.block.0.conv1.weight" for level in range(len(found))]
    return [name for name in names if name in found]

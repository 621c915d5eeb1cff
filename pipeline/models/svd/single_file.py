"""Stable Video Diffusion from the files that its publishers and ComfyUI name: UNet, temporal VAE and CLIP's vision."""

from __future__ import annotations

import re
from typing import Any

import torch

from ..checkpoints.part_plan import PartPlan, fitted, shapes_of
from ..checkpoints.tensor_files import Tensors
from ..ldm_names import DOWN_LAYERS, RESIDUAL
from .lora_names import NAMES

UNET, VAE = "UNetSpatioTemporalConditionModel", "AutoencoderKLTemporalDecoder"
HEAD_WIDTH, SCALING_FACTOR = 64, 0.18215
"""What tensors do not say: as published."""
SCHEDULER: dict[str, Any] = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "interpolation_type": "linear",
    "use_karras_sigmas": True,
    "sigma_min": 0.002,
    "sigma_max": 700.0,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
}


def unet(tensors: Tensors) -> PartPlan:
    """The UNet's plan; raises CheckpointError for tensors that do not fit."""
    from diffusers import UNetSpatioTemporalConditionModel

    first = [f"input_blocks.{1 + (DOWN_LAYERS + 1) * level}." for level in range(len(tensors))]
    first = [place for place in first if f"{place}0.in_layers.2.weight" in tensors]
    channels = [tensors[f"{place}0.in_layers.2.weight"].shape[0] for place in first]
    attends = [f"{place}1.proj_in.weight" in tensors for place in first]
    ids = tensors["label_emb.0.0.weight"].shape[1]
    config: dict[str, Any] = {
        "_class_name": UNET,
        "in_channels": tensors["input_blocks.0.0.weight"].shape[1],
        "out_channels": tensors["out.2.weight"].shape[0],
        "block_out_channels": channels,
        "down_block_types": [f"{'CrossAttn' if each else ''}DownBlockSpatioTemporal" for each in attends],
        "up_block_types": [f"{'CrossAttn' if each else ''}UpBlockSpatioTemporal" for each in reversed(attends)],
        "layers_per_block": DOWN_LAYERS,
        "cross_attention_dim": tensors["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "num_attention_heads": [width // HEAD_WIDTH for width in channels],
        "addition_time_embed_dim": ids // 3,
        "projection_class_embeddings_input_dim": ids,
    }
    shapes = shapes_of(UNetSpatioTemporalConditionModel, config)
    left, named = dict(tensors), {}
    for name in shapes:
        module, _, parameter = name.rpartition(".")
        for other in NAMES.published(module):
            if f"{other}.{parameter}" in left:
                named[name] = left.pop(f"{other}.{parameter}")
    return PartPlan("diffusers", UNET, config, fitted("the UNet", shapes, named, [*left]))


def vae(tensors: Tensors) -> PartPlan:
    """The VAE's plan; raises CheckpointError for tensors that do not fit.

    Files without the layer after the encoder hold it in the encoder's last one: here it changes nothing.
    """
    from diffusers import AutoencoderKLTemporalDecoder
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    levels = sum(bool(re.fullmatch(r"encoder\.down\.\d+\.block\.0\.conv1\.weight", name)) for name in tensors)
    latent = tensors["decoder.conv_in.weight"].shape[1]
    config: dict[str, Any] = {
        "_class_name": VAE,
        "block_out_channels": [tensors[f"encoder.down.{n}.block.0.conv1.weight"].shape[0] for n in range(levels)],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "latent_channels": latent,
        "layers_per_block": sum(
            bool(re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)) for name in tensors
        ),
        "scaling_factor": SCALING_FACTOR,
        "sample_size": 768,
    }
    settings = {**config, "up_block_types": [""] * levels}  # which diffusers' map counts
    found: dict[str, torch.Tensor] = convert_ldm_vae_checkpoint(dict(tensors), settings)
    named = {_temporal(name): tensor for name, tensor in found.items()}
    for parameter in ("weight", "bias"):
        name = f"decoder.conv_out.time_mix_conv.{parameter}"
        named |= {f"decoder.time_conv_out.{parameter}": tensors[name]} if name in tensors else {}
    if "quant_conv.weight" not in named:
        dtype = tensors["encoder.conv_out.weight"].dtype
        named["quant_conv.weight"] = torch.eye(2 * latent, dtype=dtype)[..., None, None]
        named["quant_conv.bias"] = torch.zeros(2 * latent, dtype=dtype)
    return PartPlan("diffusers", VAE, config, fitted("the VAE", shapes_of(AutoencoderKLTemporalDecoder, config), named))


def _temporal(name: str) -> str:
    """Diffusers' name of a layer of the decoder by the name that its map for pictures gives it."""
    match = re.fullmatch(r"(decoder\..*resnets\.\d+)\.(time_stack\.)?(.+)", name)
    if match is None:
        return name
    block, in_time, layer = match.groups()
    if layer == "mix_factor":
        return f"{block}.time_mixer.mix_factor"
    if not in_time:
        return f"{block}.spatial_res_block.{layer}"
    own = next(
        (f"{ours}.{layer.rpartition('.')[2]}" for ours, theirs in RESIDUAL if layer.startswith(f"{theirs}.")), ""
    )
    return f"{block}.temporal_res_block.{own or layer}"

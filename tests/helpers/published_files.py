"""Tiny checkpoints as single files in their publishers' names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.pipeline.models.dynamicrafter.stored_names import published

WEIGHTS = "diffusion_pytorch_model.safetensors"
VAE_NAMES = (
    ("encoder.down_blocks.", "encoder.down."),
    (".downsamplers.0.", ".downsample."),
    (".upsamplers.0.", ".upsample."),
    (".resnets.", ".block."),
    ("mid_block.block.0", "mid.block_1"),
    ("mid_block.block.1", "mid.block_2"),
    ("mid_block.attentions.0", "mid.attn_1"),
    (".conv_shortcut.", ".nin_shortcut."),
    ("conv_norm_out.", "norm_out."),
    (".group_norm.", ".norm."),
    (".to_q.", ".q."),
    (".to_k.", ".k."),
    (".to_v.", ".v."),
    (".to_out.0.", ".proj_out."),
)
"""Diffusers' names and latent diffusion's, one after another."""
PROJECTION_NAMES = (
    (".attn.to_q.", ".0.to_q."),
    (".attn.to_out.0.", ".0.to_out."),
    (".ln0.", ".0.norm1."),
    (".ln1.", ".0.norm2."),
    (".ff.1.net.0.proj.", ".1.1."),
    (".ff.1.net.2.", ".1.3."),
    (".ff.0.", ".1.0."),
)


def write_published_dynamicrafter(
    folder: Path,
    path: Path,
    base: float | None = 0.7,
    later: bool = False,
    first_stage: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """Writes the networks of a folder as one file; with the names of the 256 model where `later`, alphas included.

    `first_stage` are a VAE's tensors under their published names, where it is not Stable Diffusion's.
    """
    generator = torch.Generator().manual_seed(0)
    tensors: dict[str, torch.Tensor] = {}
    for name, tensor in _stored(folder, "unet"):
        module, _, parameter = name.rpartition(".")
        other = published(module)[-1 if later else 0]
        is_conv1d = module in ("transformer_in.proj_in", "transformer_in.proj_out") and parameter == "weight"
        tensors[f"model.diffusion_model.{other}.{parameter}"] = tensor[..., None] if is_conv1d else tensor
        if later and module.endswith("attn2.to_v_ip"):
            attention = other.removesuffix(".to_v_ip")
            tensors[f"model.diffusion_model.{attention}.alpha"] = torch.randn((), generator=generator)
    if first_stage is None:
        first_stage = dict(vae_name(*row) for row in _stored(folder, "vae"))
    tensors |= {f"first_stage_model.{name}": tensor for name, tensor in first_stage.items()}
    tensors |= {f"image_proj_model.{name}": tensor for name, tensor in projection(folder).items()}
    if base is not None:
        tensors["scale_arr"] = torch.linspace(1, base, 400).repeat_interleave(2)
    tensors["betas"] = torch.zeros(1000)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def vae_name(name: str, tensor: torch.Tensor, levels: int = 4) -> tuple[str, torch.Tensor]:
    """A tensor of the VAE under latent diffusion's name, whose attention has convolutions."""
    for one, other in VAE_NAMES:
        name = name.replace(one, other)
    if name.startswith("decoder.up_blocks."):
        level, rest = name.removeprefix("decoder.up_blocks.").split(".", 1)
        name = f"decoder.up.{levels - 1 - int(level)}.{rest}"
    is_conv = ".attn_1." in name and tensor.ndim == 2
    return name, tensor[..., None, None] if is_conv else tensor


def projection(folder: Path) -> dict[str, torch.Tensor]:
    """The picture's projection, with keys and values in one."""
    found = dict(_stored(folder, "image_projection"))
    for name in [name for name in found if ".attn.to_k." in name]:
        values = found.pop(name.replace("to_k", "to_v"))
        found[name.replace(".attn.to_k.", ".0.to_kv.")] = torch.cat([found.pop(name), values])
    for one, other in PROJECTION_NAMES:
        found = {name.replace(one, other): tensor for name, tensor in found.items()}
    return found


def _stored(folder: Path, part: str) -> list[tuple[str, torch.Tensor]]:
    (file,) = (folder / part).glob("*.safetensors")
    return list(load_file(file).items())

"""DynamiCrafter's published tensors as the networks of diffusers' modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ...common.errors import CheckpointError
from ..models.checkpoints.part_plan import PartPlan, Plan, fitted, shapes_of
from ..models.checkpoints.tensor_files import Tensors, below, prefix_of
from ..models.dynamicrafter.published_settings import KIND_SCHEDULER, KINDS, SCHEDULER, TOONCRAFTER, index_of
from ..models.dynamicrafter.stored_names import published
from ..models.parts import own_class
from .ldm_vae import VAE, vae_of
from .other_parts import Wanted, find_parts
from .tooncrafter_vae import REFINEMENT, tooncrafter_vae

TITLE = "DynamiCrafter"
MARK = "init_attn.0.proj_in.weight"
"""Of its UNet alone."""
ALPHA = ".attn2.alpha"
BUFFERS = ("betas", "alphas_cumprod", "sqrt_", "log_one", "posterior", "scale_arr", "ddim_", "model_ema", "cond_stage")
"""Beginnings of tensors that a checkpoint has beside its networks, or that the user's folders have in their place."""
HEAD_WIDTH, GROUPS = 64, 32
"""What tensors do not say: as published."""
BASES = {0.7: ("512", "interp"), 0.3: ("1024",)}
"""Checkpoints by the last value of the dynamic rescale."""
PARTS = {
    "text_encoder": Wanted(("CLIPTextModel",), "stabilityai/stable-diffusion-2-1 or ali-vilab/i2vgen-xl"),
    "tokenizer": Wanted(("CLIPTokenizer", "CLIPTokenizerFast"), "the same"),
    "image_encoder": Wanted(
        ("CLIPVisionModelWithProjection", "CLIPVisionModel"),
        "stabilityai/stable-video-diffusion-img2vid-xt or ali-vilab/i2vgen-xl",
    ),
}


def recognises(tensors: Tensors) -> bool:
    """Whether these are DynamiCrafter's."""
    return prefix_of(tensors, MARK) is not None


def plan(tensors: Tensors, folders: Sequence[Path], kind: str | None, groups: int = GROUPS) -> Plan:
    """The checkpoint's plan; raises CheckpointError in a sentence for what is missing, foreign or ambiguous."""
    kind = kind_of(tensors, kind)
    prefix = prefix_of(tensors, MARK) or ""
    unet = _without_the_rest(below(tensors, prefix))
    others = {name: tensor for name, tensor in tensors.items() if name.removeprefix(prefix) not in unet}
    parts = {
        "unet": _unet(unet, groups),
        "image_projection": _projection(below(others, "image_proj_model.")),
        "scheduler": PartPlan("diffusers", "DDIMScheduler", {**SCHEDULER, **KIND_SCHEDULER[kind]}),
    }
    first_stage = below(others, "first_stage_model.")
    missing = PARTS if first_stage else {**PARTS, "vae": VAE}
    if first_stage:
        parts["vae"] = tooncrafter_vae(first_stage) if kind == TOONCRAFTER else vae_of(first_stage, groups)
    return Plan(index_of(kind), {**parts, **find_parts(missing, folders, TITLE)})


def kind_of(tensors: Tensors, asked: str | None) -> str:
    """Which of the published checkpoints it is, as far as tensors say, or else as the user says."""
    if any(REFINEMENT in name for name in tensors):
        known = (TOONCRAFTER,)
    elif any(name.endswith(ALPHA) or "framestride_embed" in name for name in tensors):
        known = ("256",)
    else:
        scale = next((tensor for name, tensor in tensors.items() if name.endswith("scale_arr")), None)
        base = None if scale is None else round(float(scale.flatten()[-1]), 2)
        known = tuple(kind for kind in KINDS if kind != "256") if base is None else BASES.get(base, ())
    if asked is not None and asked in known:
        return asked
    if len(known) == 1 and asked is None:
        return known[0]
    options = " or ".join(f"--kind {kind}" for kind in known)
    found = "nothing" if asked is None else f"--kind {asked}"
    raise CheckpointError(
        f"The tensors of this DynamiCrafter may be of several kinds: expected {options}, found {found}."
    )


def _without_the_rest(unet: Tensors) -> dict[str, torch.Tensor]:
    """A UNet's tensors where no prefix tells them from other parts'."""
    others = ("first_stage_model.", "image_proj_model.", "cond_stage_model.", "embedder.", *BUFFERS)
    return {name: tensor for name, tensor in unet.items() if not name.startswith(others)}


def _unet(found: Mapping[str, torch.Tensor], groups: int) -> PartPlan:
    kind = own_class("DynamiCrafterUNet")
    config = {
        "_class_name": "DynamiCrafterUNet",
        "in_channels": found["input_blocks.0.0.weight"].shape[1],
        "out_channels": found["out.2.weight"].shape[0],
        "block_out_channels": _channels(found),
        "cross_attention_dim": found["input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"].shape[1],
        "attention_head_dim": HEAD_WIDTH,
        "norm_num_groups": groups,
    }
    shapes = shapes_of(kind, config)
    named, left = {}, dict(found)
    for name in shapes:
        module, _, parameter = name.rpartition(".")
        for other in published(module):
            if f"{other}.{parameter}" in left:
                named[name] = left.pop(f"{other}.{parameter}")
    for name in [name for name in left if name.endswith(ALPHA)]:
        _fold_alpha(named, name, left.pop(name))
    return PartPlan("i2v_tensorrt", "DynamiCrafterUNet", config, fitted("DynamiCrafter's UNet", shapes, named, [*left]))


def _channels(found: Mapping[str, torch.Tensor]) -> list[int]:
    """The width of each level, from the first residual block of each."""
    names = [f"input_blocks.{1 + 3 * level}.0.in_layers.2.weight" for level in range(len(found))]
    return [found[name].shape[0] for name in names if name in found]


def _fold_alpha(named: dict[str, torch.Tensor], name: str, alpha: torch.Tensor) -> None:
    """Scales a layer's values of the picture by its learnt factor, tanh(alpha) + 1, in which they are linear."""
    other = name.removesuffix(".alpha")
    for target in [each for each in named if each.endswith(".attn2.to_v_ip.weight")]:
        if published(target.removesuffix(".to_v_ip.weight")) == (other,):
            weight = named[target]
            named[target] = (weight.float() * (alpha.float().tanh() + 1)).to(weight.dtype)


def _projection(found: Mapping[str, torch.Tensor]) -> PartPlan:
    if not found:
        raise CheckpointError(
            "Expected the tensors image_proj_model., which DynamiCrafter's picture goes through, found none: name the "
            "pruned file that has them beside the UNet's."
        )
    config: dict[str, Any] = {
        "_class_name": "DynamiCrafterImageProjection",
        "embed_dims": found["proj_in.weight"].shape[1],
        "output_dims": found["proj_out.weight"].shape[0],
        "hidden_dims": found["proj_in.weight"].shape[0],
        "depth": sum(name.endswith(".0.to_q.weight") for name in found),
        "dim_head": HEAD_WIDTH,
        "heads": found["layers.0.0.to_q.weight"].shape[0] // HEAD_WIDTH,
        "num_queries": found["latents"].shape[1],
    }
    named: dict[str, torch.Tensor] = {}
    for name, tensor in found.items():
        named.update(_projection_names(name, tensor))
    shapes = shapes_of(own_class("DynamiCrafterImageProjection"), config)
    fit = fitted("DynamiCrafter's image projection", shapes, named)
    return PartPlan("i2v_tensorrt", "DynamiCrafterImageProjection", config, fit)


PROJECTION_NAMES = {
    "0.norm1": "ln0",
    "0.norm2": "ln1",
    "0.to_q": "attn.to_q",
    "0.to_out": "attn.to_out.0",
    "1.0": "ff.0",
    "1.1": "ff.1.net.0.proj",
    "1.3": "ff.1.net.2",
}


def _projection_names(name: str, tensor: torch.Tensor) -> dict[str, torch.Tensor]:
    """A tensor under diffusers' name; keys and values, which are one there, are two."""
    head, _, parameter = name.rpartition(".")
    if not head.startswith("layers."):
        return {name: tensor}
    _, number, module = head.split(".", 2)
    if module == "0.to_kv":
        keys, values = tensor.chunk(2)
        where = f"layers.{number}.attn"
        return {f"{where}.to_k.{parameter}": keys, f"{where}.to_v.{parameter}": values}
    return {f"layers.{number}.{PROJECTION_NAMES.get(module, module)}.{parameter}": tensor}

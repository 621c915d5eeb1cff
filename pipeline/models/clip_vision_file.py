"""CLIP's vision model from a single file, in transformers' names or in open_clip's."""

from __future__ import annotations

import re
from math import isqrt
from typing import Any

import torch

from .checkpoints.part_plan import PartPlan, fitted
from .checkpoints.tensor_files import Tensors

TITLE = "CLIP's vision model"
HEAD_WIDTH = 80
"""What tensors do not say: as published of ViT-H/14, which Wan and Stable Video Diffusion see by."""
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
INNER = "vision_model."
OPEN_CLIP = (
    (r"^conv1\.", "embeddings.patch_embedding."),
    (r"^class_embedding$", "embeddings.class_embedding"),
    (r"^positional_embedding$", "embeddings.position_embedding.weight"),
    (r"^ln_pre\.", "pre_layrnorm."),
    (r"^ln_post\.", "post_layernorm."),
    (r"^transformer\.resblocks\.", "encoder.layers."),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.out_proj\.", ".self_attn.out_proj."),
)
"""Patterns over open_clip's names, and transformers' names."""


def image_encoder(tensors: Tensors, class_name: str) -> PartPlan:
    """The plan of the encoder as a class of transformers; raises CheckpointError for tensors that do not fit."""
    import transformers

    kind: Any = getattr(transformers, class_name)
    named = _named(tensors)
    embedding = named["embeddings.patch_embedding.weight"]
    width, patch = embedding.shape[0], embedding.shape[-1]
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": "clip_vision_model",
        "hidden_size": width,
        "intermediate_size": named["encoder.layers.0.mlp.fc1.weight"].shape[0],
        "num_hidden_layers": sum(name.endswith(".mlp.fc1.weight") for name in named),
        "num_attention_heads": width // HEAD_WIDTH,
        "hidden_act": "gelu",
        "image_size": isqrt(len(named["embeddings.position_embedding.weight"]) - 1) * patch,
        "patch_size": patch,
    }
    projection = named.pop("visual_projection.weight", None)
    if projection is not None and class_name.endswith("WithProjection"):
        config["projection_dim"] = projection.shape[0]
        named["visual_projection.weight"] = projection
    with torch.device("meta"):
        shapes = {name: x.shape for name, x in kind(kind.config_class.from_dict(config)).state_dict().items()}
    own = {name: named.get(name.removeprefix(INNER)) for name in shapes}  # transformers 5.6 left the prefix out
    found = {name: tensor for name, tensor in own.items() if tensor is not None}
    left = sorted({*named} - {name.removeprefix(INNER) for name in shapes})
    return PartPlan("transformers", class_name, config, fitted(TITLE, shapes, found, left))


def image_processor(side: int) -> PartPlan:
    """The plan of what prepares a picture, of `side` pixels, for the encoder."""
    config = {
        "image_processor_type": "CLIPImageProcessor",
        "crop_size": {"height": side, "width": side},
        "size": {"shortest_edge": side},
        "image_mean": list(MEAN),
        "image_std": list(STD),
        "do_normalize": True,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_resize": True,
        "do_center_crop": True,
        "do_convert_rgb": True,
        "resample": 3,
    }
    return PartPlan("transformers", "CLIPImageProcessor", config)


def _named(tensors: Tensors) -> dict[str, torch.Tensor]:
    """The tensors by transformers' names, without the prefix that some versions have."""
    named: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if name == "proj":
            named["visual_projection.weight"] = tensor.T
        elif match := re.fullmatch(r"transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name):
            for which, chunk in zip("qkv", tensor.chunk(3), strict=True):
                named[f"encoder.layers.{match[1]}.self_attn.{which}_proj.{match[2]}"] = chunk
        else:
            for pattern, other in OPEN_CLIP:
                name = re.sub(pattern, other, name)
            named[name.removeprefix(INNER)] = tensor
    return {name: tensor for name, tensor in named.items() if not name.endswith("position_ids")}

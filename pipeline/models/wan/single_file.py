"""Wan from the files that its publishers and ComfyUI name: transformer, causal VAE, UMT5 with its tokenizer."""

from __future__ import annotations

import re
from typing import Any

import torch

from ....common.errors import CheckpointError
from ..checkpoints.part_plan import PartPlan, fitted, shapes_of
from ..checkpoints.tensor_files import Tensors

TRANSFORMER, VAE, TEXT = "WanTransformer3DModel", "AutoencoderKLWan", "UMT5EncoderModel"
TOKENIZER = "spiece_model"
"""The tensor that holds the bytes of UMT5's tokenizer, a model of SentencePiece's."""
TOKENIZER_FILE = "spiece.model"
HEAD_WIDTH = 128
VAE_LAYERS: dict[str, Any] = {"dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "temperal_downsample": [False, True, True]}
"""What tensors do not say: as published."""
BOUNDARY_RATIO = 0.9
"""Share of the timesteps from which the first expert of A14B predicts."""
SCHEDULER: dict[str, Any] = {
    "_class_name": "UniPCMultistepScheduler",
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2",
    "timestep_spacing": "linspace",
    "use_flow_sigmas": True,
}
FLOW_SHIFT = {"wan21": 3.0, "a14b": 3.0, "ti2v": 5.0}
LATENTS_MEAN = """
    -0.2289 -0.0052 -0.1323 -0.2339 -0.2799 0.0174 0.1838 0.1557 -0.1382 0.0542 0.2813 0.0891 0.1570 -0.0098 0.0375
    -0.1825 -0.2246 -0.1207 -0.0698 0.5109 0.2665 -0.2108 -0.2158 0.2502 -0.2055 -0.0322 0.1109 0.1567 -0.0729 0.0899
    -0.2799 -0.1230 -0.0313 -0.1649 0.0117 0.0723 -0.2839 -0.2083 -0.0520 0.3748 0.0152 0.1957 0.1433 -0.2944 0.3573
    -0.0548 -0.1681 -0.0667"""
LATENTS_STD = """
    0.4765 1.0364 0.4514 1.1677 0.5313 0.4990 0.4818 0.5013 0.8158 1.0344 0.5894 1.0901 0.6885 0.6165 0.8454 0.4978
    0.5759 0.3523 0.7135 0.6804 0.5833 1.4146 0.8986 0.5659 0.7069 0.5338 0.4889 0.4917 0.4069 0.4999 0.6866 0.4093
    0.5709 0.6065 0.6415 0.4944 0.5726 1.2042 0.5458 1.6887 0.3971 1.0600 0.3943 0.5537 0.5444 0.4089 0.7468 0.7744"""
"""Of TI2V's latents, as published; those of the other VAE are diffusers' defaults."""
RESIDUAL = {"residual.0": "norm1", "residual.2": "conv1", "residual.3": "norm2", "residual.6": "conv2"}


def scheduler(model: str) -> dict[str, Any]:
    """Configuration of the scheduler that is published with a model, one of `FLOW_SHIFT`."""
    return {**SCHEDULER, "flow_shift": FLOW_SHIFT[model]}


def transformer(tensors: Tensors) -> PartPlan:
    """The transformer's plan; raises CheckpointError for tensors that do not fit."""
    from diffusers import WanTransformer3DModel
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    named: dict[str, torch.Tensor] = convert_wan_transformer_to_diffusers(dict(tensors))
    patches = tensors["patch_embedding.weight"]
    picture = tensors.get("img_emb.proj.1.weight")
    config: dict[str, Any] = {
        "_class_name": TRANSFORMER,
        "patch_size": list(patches.shape[2:]),
        "num_attention_heads": patches.shape[0] // HEAD_WIDTH,
        "attention_head_dim": HEAD_WIDTH,
        "in_channels": patches.shape[1],
        "out_channels": tensors["head.head.weight"].shape[0] // patches[0, 0].numel(),
        "text_dim": tensors["text_embedding.0.weight"].shape[1],
        "freq_dim": tensors["time_embedding.0.weight"].shape[1],
        "ffn_dim": tensors["blocks.0.ffn.0.weight"].shape[0],
        "num_layers": sum(bool(re.fullmatch(r"blocks\.\d+\.modulation", name)) for name in tensors),
        "image_dim": None if picture is None else picture.shape[1],
        "added_kv_proj_dim": None if picture is None else patches.shape[0],
    }
    shapes = shapes_of(WanTransformer3DModel, config)
    return PartPlan("diffusers", TRANSFORMER, config, fitted("the transformer", shapes, named))


def vae(tensors: Tensors) -> PartPlan:
    """The VAE's plan, in either of its published forms; raises CheckpointError for tensors that do not fit."""
    from diffusers import AutoencoderKLWan
    from diffusers.loaders.single_file_utils import convert_wan_vae_to_diffusers

    residual = {name: other for name in tensors if (other := _residual_name(name))}
    rest = {name: tensor for name, tensor in tensors.items() if name not in residual}
    named: dict[str, torch.Tensor] = convert_wan_vae_to_diffusers(rest)
    named |= {other: tensors[name] for name, other in residual.items()}
    config: dict[str, Any] = {
        "_class_name": VAE,
        **VAE_LAYERS,
        "base_dim": tensors["encoder.conv1.weight"].shape[0],
        "z_dim": tensors["conv2.weight"].shape[0],
    }
    if residual:
        config |= _ti2v_settings(tensors)
    with torch.device("meta"):
        network: Any = AutoencoderKLWan.from_config(config)
    config |= {name: list(network.config[name]) for name in ("latents_mean", "latents_std")}
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    return PartPlan("diffusers", VAE, config, fitted("the VAE", shapes, named))


def _ti2v_settings(tensors: Tensors) -> dict[str, Any]:
    channels = tensors["encoder.conv1.weight"].shape[1]
    return {
        "decoder_base_dim": tensors["decoder.head.0.gamma"].shape[0],
        "is_residual": True,
        "in_channels": channels,
        "out_channels": channels,
        "patch_size": 2,
        "scale_factor_spatial": 16,
        "latents_mean": [float(value) for value in LATENTS_MEAN.split()],
        "latents_std": [float(value) for value in LATENTS_STD.split()],
    }


def _residual_name(name: str) -> str | None:
    """Diffusers' name of a layer of a residual block of TI2V's VAE; None for any other layer."""
    match = re.fullmatch(r"(en|de)coder\.(?:down|up)samples\.(\d+)\.(down|up)samples\.(\d+)\.(.+)", name)
    if match is None:
        return None
    coder, level, way, layer, rest = match.groups()
    block = f"{coder}coder.{way}_blocks.{level}"
    if rest.startswith(("resample.", "time_conv.")):
        return f"{block}.{way}sampler.{rest}"
    module, _, parameter = rest.rpartition(".")
    return f"{block}.resnets.{layer}.{RESIDUAL.get(module, 'conv_shortcut')}.{parameter}"


def text_encoder(tensors: Tensors) -> PartPlan:
    """The text encoder's plan; raises CheckpointError for tensors that do not fit."""
    from transformers import UMT5Config, UMT5EncoderModel

    named = {name: tensor for name, tensor in tensors.items() if name != TOKENIZER}
    vocabulary, width = named["shared.weight"].shape
    buckets, heads = named["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
    config: dict[str, Any] = {
        "architectures": [TEXT],
        "model_type": "umt5",
        "vocab_size": vocabulary,
        "d_model": width,
        "d_kv": named["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[0] // heads,
        "d_ff": named["encoder.block.0.layer.1.DenseReluDense.wi_0.weight"].shape[0],
        "num_heads": heads,
        "num_layers": sum(name.endswith(".DenseReluDense.wi_0.weight") for name in named),
        "relative_attention_num_buckets": buckets,
        "feed_forward_proj": "gated-gelu",
    }
    with torch.device("meta"):
        network = UMT5EncoderModel(UMT5Config(**config))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    named.setdefault("encoder.embed_tokens.weight", named["shared.weight"])
    return PartPlan("transformers", TEXT, config, fitted("the text encoder", shapes, named))


def tokenizer(tensors: Tensors) -> PartPlan:
    """The tokenizer's plan; raises CheckpointError for a file of a text encoder without it."""
    name = next((name for name in tensors if name.endswith(TOKENIZER)), None)
    if name is None:
        raise CheckpointError(
            f"Expected the file of the text encoder to have the tensor {TOKENIZER}, its tokenizer, found none: take "
            "umt5_xxl_fp16.safetensors of Comfy-Org/Wan_2.1_ComfyUI_repackaged."
        )
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0}
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    files = {TOKENIZER_FILE: tensors[name].contiguous().view(torch.uint8).numpy().tobytes()}
    return PartPlan("transformers", "T5TokenizerFast", {**settings, **special}, files=files)

"""Tiny checkpoints as the single files that people have, in their publishers' names, and the folders they equal."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.pipeline.dummies.svd import TinySvdSizes, write_tiny_svd
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.models.ldm_names import RESIDUAL
from i2v_tensorrt.pipeline.models.svd.lora_names import NAMES
from i2v_tensorrt.pipeline.models.wan import single_file as wan
from i2v_tensorrt.pipeline.models.wan.lora_names import published

from .published_files import WEIGHTS, vae_name

Tensors = dict[str, torch.Tensor]
WAN_SIZES = TinyWanSizes(heads=1, head_dim=128, layers=2, width=80, vae_levels=(1, 2, 4, 4), vae_layers=2)
SVD_SIZES = TinySvdSizes(channels=(64, 128), heads=(1, 2), width=80, layers=2)
"""Of the heads and layers that are published, which tensors do not say."""
HIGH, LOW = "wan2.2_high_noise.safetensors", "wan2.2_low_noise.safetensors"
NAMES_OF = {"wan21": "wan2.1_i2v.safetensors", "ti2v": "wan2.2_ti2v.safetensors", "a14b": HIGH}
"""Files of denoisers by kind."""
SVD_FILE, TEXT_FILE, VISION_FILE = "svd_xt.safetensors", "umt5_fp32.safetensors", "clip_vision_h.safetensors"
RESIDUAL_WAN = {other: name for name, other in wan.RESIDUAL.items()}


def write_wan_folder(folder: Path, kind: str) -> Path:
    """A tiny Wan with the settings that single files of its model are read by."""
    write_tiny_wan(folder, kind, WAN_SIZES)
    if kind == "wan21":
        _edit(folder / "image_encoder" / "config.json", num_attention_heads=1, hidden_act="gelu")
    if kind == "ti2v":
        mean, std = ([float(value) for value in text.split()] for text in (wan.LATENTS_MEAN, wan.LATENTS_STD))
        _edit(folder / "vae" / "config.json", latents_mean=mean, latents_std=std)
    _edit(folder / "scheduler" / "scheduler_config.json", flow_shift=wan.FLOW_SHIFT[kind])
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / wan.TOKENIZER_FILE).write_bytes(sentencepiece_model())
    return folder


def write_svd_folder(folder: Path) -> Path:
    """A tiny Stable Video Diffusion with the settings that its single file is read by."""
    write_tiny_svd(folder, SVD_SIZES)
    _edit(folder / "image_encoder" / "config.json", num_attention_heads=1, hidden_act="gelu")
    vae = load_file(folder / "vae" / WEIGHTS)
    vae["quant_conv.weight"] = torch.eye(len(vae["quant_conv.bias"]))[..., None, None]
    vae["quant_conv.bias"].zero_()
    save_file(vae, folder / "vae" / WEIGHTS, {"format": "pt"})
    return folder


def sentencepiece_model() -> bytes:
    """A tokenizer of UMT5's kind, trained on a few words."""
    import sentencepiece

    writer, words = io.BytesIO(), ["a boat in the sea", "blurry boats seen in the rain", "a sea of rain"]
    sentencepiece.SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
        sentence_iterator=iter(words),
        model_writer=writer,
        vocab_size=320,
        hard_vocab_limit=False,
        byte_fallback=True,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    return writer.getvalue()


def write_wan_files(folder: Path, models: Path, kind: str, prefix: str = "") -> Path:
    """Writes the single files of a folder into ComfyUI's folders below `models`; returns the denoiser's."""
    denoisers = {"transformer": models / "diffusion_models" / NAMES_OF[kind]}
    denoisers |= {"transformer_2": models / "diffusion_models" / LOW} if kind == "a14b" else {}
    for part, path in denoisers.items():
        _save({prefix + _wan_name(name): tensor for name, tensor in load_file(folder / part / WEIGHTS).items()}, path)
    vae = load_file(folder / "vae" / WEIGHTS)
    name_of = _ti2v_vae_name if kind == "ti2v" else _vae_name
    _save({name_of(name): tensor for name, tensor in vae.items()}, models / "vae" / f"wan_{kind}_vae.safetensors")
    text = load_file(folder / "text_encoder" / "model.safetensors")
    tokens = torch.frombuffer(bytearray((folder / "tokenizer" / wan.TOKENIZER_FILE).read_bytes()), dtype=torch.uint8)
    _save({**text, wan.TOKENIZER: tokens}, models / "text_encoders" / TEXT_FILE)
    if kind == "wan21":
        vision = load_file(folder / "image_encoder" / "model.safetensors")
        named = {f"vision_model.{name.removeprefix('vision_model.')}": tensor for name, tensor in vision.items()}
        _save(named, models / "clip_vision" / VISION_FILE)
    return denoisers["transformer"]


def write_svd_file(folder: Path, models: Path) -> Path:
    """Writes a folder's networks as one file below `models`, and returns it."""
    tensors: Tensors = {}
    for name, tensor in load_file(folder / "unet" / WEIGHTS).items():
        module, _, parameter = name.rpartition(".")
        tensors[f"model.diffusion_model.{NAMES.published(module)[0]}.{parameter}"] = tensor
    for name, tensor in load_file(folder / "vae" / WEIGHTS).items():
        if not name.startswith("quant_conv."):
            other, found = temporal_vae_name(name, tensor)
            tensors[f"first_stage_model.{other}"] = found
    vision = open_clip(load_file(folder / "image_encoder" / "model.safetensors"))
    prefix = "conditioner.embedders.0.open_clip.model.visual."
    tensors |= {prefix + name: tensor for name, tensor in vision.items()}
    path = models / "checkpoints" / SVD_FILE
    _save(tensors, path)
    return path


def open_clip(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """CLIP's vision model under open_clip's names."""
    found: Tensors = {}
    names = (
        ("embeddings.patch_embedding", "conv1"),
        ("embeddings.class_embedding", "class_embedding"),
        ("embeddings.position_embedding.weight", "positional_embedding"),
        ("pre_layrnorm", "ln_pre"),
        ("post_layernorm", "ln_post"),
        ("encoder.layers", "transformer.resblocks"),
        ("layer_norm", "ln_"),
        ("mlp.fc1", "mlp.c_fc"),
        ("mlp.fc2", "mlp.c_proj"),
        ("self_attn.out_proj", "attn.out_proj"),
    )
    for name, tensor in tensors.items():
        name = name.removeprefix("vision_model.")
        if name == "visual_projection.weight":
            found["proj"] = tensor.T
        elif match := re.fullmatch(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(\w+)", name):
            rows = [tensors[key.replace("q_proj", f"{each}_proj")] for key in _like(tensors, name) for each in "qkv"]
            found[f"transformer.resblocks.{match[1]}.attn.in_proj_{match[2]}"] = torch.cat(rows)
        elif not re.search(r"self_attn\.[kv]_proj", name):
            for ours, theirs in names:
                name = name.replace(ours, theirs)
            found[name] = tensor
    return found


def _like(tensors: Mapping[str, torch.Tensor], ending: str) -> list[str]:
    return [name for name in tensors if name.endswith(ending)]


def _wan_name(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    if name.endswith("scale_shift_table"):
        return published(name)
    return f"{published(module)}.{parameter}"


def _vae_name(name: str) -> str:
    """A tensor of Wan 2.1's VAE under its publishers' name."""
    name = _residual_name(name)
    for ours, theirs in (("mid_block.resnets.0", "middle.0"), ("mid_block.resnets.1", "middle.2")):
        name = name.replace(ours, theirs)
    name = name.replace("mid_block.attentions.0", "middle.1")
    for ours, theirs in (("norm_out", "head.0"), ("conv_out", "head.2"), ("conv_in", "conv1")):
        name = re.sub(rf"^(\w+coder\.){ours}", rf"\1{theirs}", name)
    name = re.sub(r"^quant_conv", "conv1", re.sub(r"^post_quant_conv", "conv2", name))
    name = name.replace("encoder.down_blocks.", "encoder.downsamples.")
    name = re.sub(r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"upsamples.{4 * int(m[1]) + int(m[2])}", name)
    return re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"upsamples.{4 * int(m[1]) + 3}", name)


def _residual_name(name: str) -> str:
    for ours, theirs in RESIDUAL_WAN.items():
        name = re.sub(rf"\.{ours}\.(\w+)$", rf".{theirs}.\1", name)
    return name.replace("conv_shortcut", "shortcut")


def _ti2v_vae_name(name: str) -> str:
    """A tensor of TI2V's VAE under its publishers' name."""
    name = _residual_name(name)
    for way in ("down", "up"):
        name = re.sub(rf"{way}_blocks\.(\d)\.resnets\.(\d)", rf"{way}samples.\1.{way}samples.\2", name)
        last = 2 if way == "down" else 3
        name = re.sub(rf"{way}_blocks\.(\d)\.{way}sampler\.", rf"{way}samples.\1.{way}samples.{last}.", name)
    return _vae_name(name)


def temporal_vae_name(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    """A tensor of Stable Video Diffusion's VAE under its publishers' name."""
    if name.startswith("decoder.time_conv_out."):
        return name.replace("time_conv_out", "conv_out.time_mix_conv"), tensor
    name = name.replace(".spatial_res_block", "").replace(".time_mixer", "")
    if ".temporal_res_block." in name:
        block, layer = name.split(".temporal_res_block.")
        module, _, parameter = layer.rpartition(".")
        name = f"{block}.time_stack.{dict(RESIDUAL)[module]}.{parameter}"
    return vae_name(name, tensor)


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)


def _edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")

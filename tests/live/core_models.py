"""Tiny random checkpoints in the layouts that ComfyUI's own loaders know, written by ComfyUI's own classes.

Run by ComfyUI's Python as a script: the folder of ComfyUI, the folder of the models.
"""

import math
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

WAN = {"dim": 128, "ffn_dim": 128, "num_heads": 1, "num_layers": 2}  # a head has 128 numbers in every Wan
WANS = {
    "tiny_wan21_i2v": {"model_type": "i2v", "in_dim": 36, "out_dim": 16},
    "tiny_wan22_a14b": {"model_type": "t2v", "in_dim": 36, "out_dim": 16},
    "tiny_wan22_5b": {"model_type": "t2v", "in_dim": 48, "out_dim": 48},
}
SVD: dict[str, Any] = {
    # What ComfyUI knows the family by; the rest is as small as it lets it be.
    "image_size": 32,
    "in_channels": 8,
    "out_channels": 4,
    "model_channels": 320,
    "num_res_blocks": [2, 2, 2, 2],
    "channel_mult": [1, 1, 1, 1],
    "num_heads": -1,
    "num_head_channels": 64,
    "use_spatial_transformer": True,
    "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0] * 12,
    "context_dim": 1024,
    "adm_in_channels": 768,
    "num_classes": "sequential",
    "use_linear_in_transformer": True,
    "use_temporal_attention": True,
    "use_temporal_resblock": True,
    "extra_ff_mix_layer": True,
    "use_spatial_context": True,
    "merge_strategy": "learned_with_images",
    "video_kernel_size": [3, 1, 1],
    "legacy": False,
}
LTXV = {"num_layers": 2, "attention_head_dim": 4, "cross_attention_dim": 128}  # there are 32 heads in every LTXV
HUNYUAN: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": [1, 2, 2],
    "vec_in_dim": 768,
    "context_in_dim": 64,
    "hidden_size": 128,  # a head has 128 numbers in every HunyuanVideo
    "mlp_ratio": 4.0,
    "num_heads": 1,
    "depth": 2,
    "depth_single_blocks": 2,
    "axes_dim": [16, 56, 56],
    "theta": 256,
    "qkv_bias": True,
    "guidance_embed": False,
    "byt5": False,
    "meanflow": False,
    "use_cond_type_embedding": False,
    "vision_in_dim": None,
    "meanflow_sum": False,
}
SD3: dict[str, Any] = {
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": 2,
    "depth": 3,  # of blocks and of heads; the last block differs
    "input_size": None,
    "adm_in_channels": 64,
    "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 64, "out_features": 192}},
    "num_patches": 256,
    "pos_embed_max_size": 16,
    "pos_embed_scaling_factor": None,
    "qk_norm": "rms",
    "x_block_self_attn_layers": [],
}
VAE = {"z_dim": 16, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_scales": []}
RANK = 4
FP8 = torch.float8_e4m3fn
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}
MARKS = {"fp8_scaled": 2, "fp8_product": 1}
"""Elements of the tensor `scaled_fp8` by the kind of file: with two ComfyUI multiplies in full precision."""
KINDS = (*HALVES, "fp8", *MARKS)
"""The kinds of files beside fp32."""
IN_BLOCKS = re.compile(r"(^|\.)\w*(blocks|stack)\.\d+\.")


def filled(network: torch.nn.Module, seed: int = 0) -> dict[str, torch.Tensor]:
    """The network's weights, random, of a size that keeps what goes through them."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, like: torch.Tensor) -> torch.Tensor:
        values = torch.randn(like.shape, generator=generator)
        if like.ndim > 1 and not name.endswith("gamma"):
            return values / math.sqrt(math.prod(like.shape[1:]))
        return 0.02 * values if name.endswith("bias") else 1 + 0.1 * values

    return {name: draw(name, value) for name, value in network.state_dict().items()}


def lora(weights: dict[str, torch.Tensor], part: str) -> dict[str, torch.Tensor]:
    """A LoRA on every linear layer whose name holds `part`, strong enough to be seen."""
    found: dict[str, torch.Tensor] = {}
    generator = torch.Generator().manual_seed(1)
    for name, value in weights.items():
        if part in name and name.endswith(".weight") and value.ndim == 2:
            layer = f"diffusion_model.{name.removesuffix('.weight')}"
            found[f"{layer}.lora_A.weight"] = torch.randn(RANK, value.shape[1], generator=generator) / RANK
            found[f"{layer}.lora_B.weight"] = torch.randn(value.shape[0], RANK, generator=generator) / RANK
    return found


def stored(weights: dict[str, torch.Tensor], kind: str) -> dict[str, torch.Tensor]:
    """The weights as files of that kind hold them: in one dtype, or with the blocks' products in fp8."""
    if kind in HALVES:
        return {name: value.to(HALVES[kind]) for name, value in weights.items()}
    found: dict[str, torch.Tensor] = {"scaled_fp8": torch.zeros(MARKS[kind], dtype=FP8)} if kind in MARKS else {}
    for name, value in weights.items():
        if not (IN_BLOCKS.search(name) and name.endswith(".weight") and value.ndim == 2):
            found[name] = value.half()
        elif kind == "fp8":
            found[name] = value.to(FP8)
        else:
            scale = value.abs().max() / torch.finfo(FP8).max
            found[name] = (value / scale).to(FP8)
            found[name.replace(".weight", ".scale_weight")] = scale
    return found


def main(comfyui: str, models: str, svd_kinds: str = "") -> None:
    """Writes them all; of SVD, whose networks are large, further kinds in place of the others where some are named."""
    sys.path.append(comfyui)
    import comfy.cli_args  # pyright: ignore[reportMissingImports]

    comfy.cli_args.args.cpu = True
    import comfy.ops  # pyright: ignore[reportMissingImports]
    from comfy.ldm.hunyuan_video.model import HunyuanVideo  # pyright: ignore[reportMissingImports]
    from comfy.ldm.lightricks.model import LTXVModel  # pyright: ignore[reportMissingImports]
    from comfy.ldm.modules.diffusionmodules.mmdit import (  # pyright: ignore[reportMissingImports]
        OpenAISignatureMMDITWrapper,
    )
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel  # pyright: ignore[reportMissingImports]
    from comfy.ldm.wan.model import WanModel  # pyright: ignore[reportMissingImports]
    from comfy.ldm.wan.vae import WanVAE  # pyright: ignore[reportMissingImports]
    from comfy.taesd.taesd import Decoder, Encoder  # pyright: ignore[reportMissingImports]

    layers = {"device": "cpu", "operations": comfy.ops.disable_weight_init}
    if svd_kinds:
        write_kinds(filled(UNetModel(**SVD, **layers)), Path(models), "tiny_svd_core", svd_kinds.split(","))
        return
    full = {**layers, "dtype": torch.float32}
    transformers = {name: filled(WanModel(**WAN, **config, **full)) for name, config in WANS.items()}
    transformers["tiny_ltxv"] = filled(LTXVModel(**LTXV, **full))
    transformers["tiny_sd3"] = filled(OpenAISignatureMMDITWrapper(**SD3, **full))
    transformers["tiny_hunyuan"] = filled(HunyuanVideo(**HUNYUAN, **full))
    for name, weights in transformers.items():
        write(weights, Path(models), "diffusion_models", name)
        write_kinds(weights, Path(models), name, KINDS)
    write(lora(transformers["tiny_wan22_a14b"], "self_attn"), Path(models), "loras", "tiny_wan_lora")
    svd = {name: value.half() for name, value in filled(UNetModel(**SVD, **layers)).items()}
    write(svd, Path(models), "diffusion_models", "tiny_svd_core")
    reads_size = "decoder.head.0.gamma" in (Path(comfyui) / "comfy" / "sd.py").read_text("utf-8")
    vae = WanVAE(**VAE, dim=8 if reads_size else 96, temperal_downsample=[False, True, True])
    write(filled(vae), Path(models), "vae", "tiny_wan_vae")
    for part, network in (("encoder", Encoder()), ("decoder", Decoder())):
        write(filled(network), Path(models), "vae_approx", f"taesd_{part}")


def write_kinds(weights: dict[str, torch.Tensor], models: Path, name: str, kinds: Iterable[str]) -> None:
    """A file of each of those kinds."""
    for kind in kinds:
        write(stored(weights, kind), models, "diffusion_models", f"{name}_{kind}")


def write(weights: dict[str, torch.Tensor], models: Path, kind: str, name: str) -> None:
    from safetensors.torch import save_file

    (models / kind).mkdir(parents=True, exist_ok=True)
    save_file(weights, models / kind / f"{name}.safetensors")


if __name__ == "__main__":
    main(*sys.argv[1:])

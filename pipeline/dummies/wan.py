"""Tiny Wans of random weights in the published layouts: 2.1 I2V, 2.2 I2V A14B and 2.2 TI2V-5B, made offline."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .i2vgen_xl import write_checkpoint, write_feature_extractor, write_vision

KINDS = ("wan21", "a14b", "ti2v")
"""Wan 2.1 I2V; Wan 2.2 I2V A14B with its two experts; Wan 2.2 TI2V-5B with a timestep for each token."""
SCHEDULER = {
    "flow_shift": 3.0,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "bh2",
    "timestep_spacing": "linspace",
    "use_flow_sigmas": True,
}
INDEX: dict[str, Any] = {
    "scheduler": ["diffusers", "UniPCMultistepScheduler"],
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
KIND_INDEX: dict[str, dict[str, Any]] = {
    "wan21": {
        "_class_name": "WanImageToVideoPipeline",
        "image_encoder": ["transformers", "CLIPVisionModel"],
        "image_processor": ["transformers", "CLIPImageProcessor"],
    },
    "a14b": {
        "_class_name": "WanImageToVideoPipeline",
        "boundary_ratio": 0.9,
        "image_encoder": [None, None],
        "image_processor": [None, None],
        "transformer_2": ["diffusers", "WanTransformer3DModel"],
    },
    # Published as the pipeline that takes no picture, which diffusers' other pipeline reads all the same.
    "ti2v": {
        "_class_name": "WanPipeline",
        "boundary_ratio": None,
        "expand_timesteps": True,
        "transformer_2": [None, None],
    },
}
WORDS = ("▁a", "▁the", "▁boat", "▁in", "▁sea", "ing", "er", "s")


@dataclass(frozen=True)
class TinyWanSizes:
    """The widths that matter. A head has at least 12 channels, for its positions in time, height and width."""

    heads: int = 2
    head_dim: int = 24
    layers: int = 2
    width: int = 32
    """Of both encoders."""
    vae_channels: int = 8
    vae_levels: tuple[int, ...] = (1, 2, 2, 2)
    """Widths of the VAE's levels, in `vae_channels`."""
    vae_layers: int = 1
    """Residual blocks of a level of the VAE."""
    picture: int = 32
    patch: int = 8


def write_tiny_wan(folder: Path, kind: str = "wan21", sizes: TinyWanSizes | None = None, seed: int = 0) -> Path:
    """Writes a checkpoint of one of `KINDS` into `folder` (made if missing) and returns it; same seed, same weights.

    Raises StorageError when the disk refuses; a folder made here goes again.
    """
    chosen = sizes or TinyWanSizes()

    def write(into: Path) -> None:
        _write_diffusion(into, kind, chosen)
        _write_text(into / "text_encoder", chosen.width)
        write_unigram_tokenizer(into / "tokenizer")
        if kind == "wan21":
            write_vision(into, chosen.width, chosen.picture, chosen.patch, projection=False)
            write_feature_extractor(into, chosen.picture, "image_processor")

    return write_checkpoint(folder, write, {**INDEX, **KIND_INDEX[kind]}, seed)


def _write_diffusion(folder: Path, kind: str, sizes: TinyWanSizes) -> None:
    from diffusers import AutoencoderKLWan, UniPCMultistepScheduler, WanTransformer3DModel

    for name in ("transformer", "transformer_2") if kind == "a14b" else ("transformer",):
        network = WanTransformer3DModel(**_transformer(kind, sizes))
        tell_constants_apart(network)
        network.save_pretrained(folder / name)
    vae = AutoencoderKLWan(**vae_settings(kind, sizes))
    tell_constants_apart(vae)
    vae.save_pretrained(folder / "vae")
    UniPCMultistepScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


def _transformer(kind: str, sizes: TinyWanSizes) -> dict[str, Any]:
    inner = sizes.heads * sizes.head_dim
    latent = 48 if kind == "ti2v" else 16
    return {
        "num_attention_heads": sizes.heads,
        "attention_head_dim": sizes.head_dim,
        "in_channels": latent if kind == "ti2v" else 2 * latent + 4,
        "out_channels": latent,
        "text_dim": sizes.width,
        "freq_dim": 32,
        "ffn_dim": 2 * inner,
        "num_layers": sizes.layers,
        "image_dim": sizes.width if kind == "wan21" else None,
        "added_kv_proj_dim": inner if kind == "wan21" else None,
    }


def vae_settings(kind: str, sizes: TinyWanSizes) -> dict[str, Any]:
    """Both published forms in small; the second's latents are 16 pixels a side."""
    import torch

    small = {"base_dim": sizes.vae_channels, "dim_mult": list(sizes.vae_levels), "num_res_blocks": sizes.vae_layers}
    if kind != "ti2v":
        return {**small, "z_dim": 16}
    return {
        **small,
        "decoder_base_dim": 2 * sizes.vae_channels,
        "z_dim": 48,
        "latents_mean": torch.randn(48).tolist(),
        "latents_std": (torch.rand(48) + 0.5).tolist(),
        "is_residual": True,
        "in_channels": 12,
        "out_channels": 12,
        "patch_size": 2,
        "scale_factor_spatial": 16,
    }


def tell_constants_apart(network: Any) -> None:
    """Norms all start alike, by which a test would not see one in another's place."""
    import torch

    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.numel() > 1 and parameter.min() == parameter.max():
                parameter += 0.2 * torch.randn(parameter.shape)


def _write_text(folder: Path, width: int) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    config = UMT5Config(
        vocab_size=_vocabulary_size(),
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_heads=2,
        num_layers=2,
        feed_forward_proj="gated-gelu",
    )
    encoder = UMT5EncoderModel(config).eval()
    tell_constants_apart(encoder)
    encoder.save_pretrained(folder)


def _vocabulary_size() -> int:
    return len(_vocabulary())


def _vocabulary() -> list[tuple[str, float]]:
    """T5's special tokens, a few words, the printable ASCII, and every byte for the rest."""
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    letters = [(chr(code), -4.0) for code in range(ord("!"), ord("~") + 1)]
    return [*special, *((word, -3.0) for word in WORDS), *letters, *((f"<0x{n:02X}>", -9.0) for n in range(256))]


def write_unigram_tokenizer(folder: Path) -> None:
    """A tokenizer of UMT5's kind in the one file that every version of transformers reads."""
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers, processors
    from tokenizers.models import Unigram

    tokenizer = Tokenizer(Unigram(_vocabulary(), unk_id=2, byte_fallback=True))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 0, **special}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", "utf-8")

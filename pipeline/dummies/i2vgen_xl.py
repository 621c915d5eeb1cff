"""A tiny checkpoint of the published layout with random weights, made offline in a second.

For tests, and for a first run without a download: its videos show noise, but every part of the way is
the real one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...common.errors import StorageError
from ..models.checkpoints.diffusers_folder import INDEX
from ..models.clip_vision_file import image_processor
from ..models.parts import no_progress_bars

SCHEDULER = {
    "beta_schedule": "squaredcos_cap_v2",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "clip_sample": False,
    "set_alpha_to_one": True,
    "steps_offset": 1,
    "timestep_spacing": "leading",
}
TOKENS = 77
MODEL_INDEX = {
    "_class_name": "I2VGenXLPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "I2VGenXLUNet"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@dataclass(frozen=True)
class TinySizes:
    """The widths that matter; the defaults give 1.4 million parameters in the UNet."""

    channels: tuple[int, ...] = (32, 64)
    head_dim: int = 8
    width: int = 32
    groups: int = 8
    vae_channels: tuple[int, ...] = (16, 16, 32, 32)
    vae_layers: int = 1
    picture: int = 32
    patch: int = 8


def write_tiny_checkpoint(folder: Path, sizes: TinySizes | None = None, seed: int = 0) -> Path:
    """Writes the checkpoint into `folder` (made if missing) and returns it; the same seed gives the same weights.

    Raises StorageError when the disk refuses; a folder made here goes again.
    """
    chosen = sizes or TinySizes()

    def write(into: Path) -> None:
        _write_diffusion(into, chosen)
        write_text(into, chosen.width)
        write_vision(into, chosen.width, chosen.picture, chosen.patch)
        write_byte_tokenizer(into / "tokenizer")
        write_feature_extractor(into, chosen.picture)

    return write_checkpoint(folder, write, MODEL_INDEX, seed)


def write_checkpoint(folder: Path, write: Callable[[Path], None], index: Mapping[str, Any], seed: int) -> Path:
    """Writes a folder of `write`'s files under this seed, its index last, so that an unfinished checkpoint is invalid.

    Raises StorageError when the disk refuses; a folder made here is then removed.
    """
    import torch
    from safetensors import SafetensorError

    made = not folder.exists()
    with torch.random.fork_rng(devices=[]), no_progress_bars():
        torch.manual_seed(seed)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write(folder)
            write_json(folder / INDEX, index)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise StorageError(f"The tiny checkpoint could not be written to {folder}: {reason}.") from error
        finally:
            if made and not (folder / INDEX).is_file():
                shutil.rmtree(folder, ignore_errors=True)
    return folder


def _write_diffusion(folder: Path, sizes: TinySizes) -> None:
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet

    attention = len(sizes.channels) - 1
    unet = I2VGenXLUNet(
        sample_size=8,
        block_out_channels=sizes.channels,
        layers_per_block=1,
        down_block_types=(*["CrossAttnDownBlock3D"] * attention, "DownBlock3D"),
        up_block_types=("UpBlock3D", *["CrossAttnUpBlock3D"] * attention),
        norm_num_groups=sizes.groups,
        cross_attention_dim=sizes.width,
        attention_head_dim=sizes.head_dim,
    )
    wake_temporal_convolutions(unet)
    unet.save_pretrained(folder / "unet")
    levels = len(sizes.vae_channels)
    settings: dict[str, Any] = {
        "block_out_channels": sizes.vae_channels,
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": 4,
        "layers_per_block": sizes.vae_layers,
        "norm_num_groups": sizes.groups,
        "scaling_factor": 0.18125,
        "sample_size": 64,
    }
    vae = AutoencoderKL(**settings)
    vae.save_pretrained(folder / "vae")
    DDIMScheduler(**SCHEDULER).save_pretrained(folder / "scheduler")


def wake_temporal_convolutions(unet: Any) -> None:
    """Replaces the zeros that these layers start from, by which a test would not see them."""
    import torch

    for name, module in unet.named_modules():
        if name.endswith("conv4"):
            torch.nn.init.normal_(module[-1].weight, std=0.02)
            torch.nn.init.normal_(module[-1].bias, std=0.02)


def write_text(folder: Path, width: int) -> None:
    """CLIP's text model of this width, for the tokens of `byte_vocabulary`."""
    from transformers import CLIPTextConfig, CLIPTextModel

    vocabulary = byte_vocabulary()
    text = CLIPTextConfig(
        **_clip_layers(width),
        vocab_size=len(vocabulary),
        max_position_embeddings=TOKENS,
        bos_token_id=len(vocabulary) - 2,
        eos_token_id=len(vocabulary) - 1,
        pad_token_id=len(vocabulary) - 1,
    )
    CLIPTextModel(text).eval().save_pretrained(folder / "text_encoder")


def write_vision(folder: Path, width: int, picture: int, patch: int, *, projection: bool = True) -> None:
    """CLIP's vision model for pictures of `picture` pixels a side in patches, both of this width."""
    from transformers import CLIPVisionConfig, CLIPVisionModel, CLIPVisionModelWithProjection

    vision = CLIPVisionConfig(**_clip_layers(width), image_size=picture, patch_size=patch)
    made = CLIPVisionModelWithProjection(vision) if projection else CLIPVisionModel(vision)
    made.eval().save_pretrained(folder / "image_encoder")


def _clip_layers(width: int) -> dict[str, Any]:
    return {
        "num_hidden_layers": 2,
        "num_attention_heads": max(width // 16, 1),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "projection_dim": width,
    }


def byte_vocabulary() -> dict[str, int]:
    """CLIP's vocabulary without merges: 256 bytes, 256 bytes that end a word, start and end: 514 tokens."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(len(others))]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def write_byte_tokenizer(folder: Path) -> None:
    """A CLIP tokenizer over `byte_vocabulary`, in the files that every version of transformers reads."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "vocab.json", byte_vocabulary())
    (folder / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    special = {
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "unk_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    write_json(folder / "special_tokens_map.json", special)
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": TOKENS, "do_lower_case": True, **special}
    write_json(folder / "tokenizer_config.json", settings)


def write_feature_extractor(folder: Path, side: int, part: str = "feature_extractor") -> None:
    """Writes the configuration of CLIP's image processor, for pictures of `side` pixels."""
    (folder / part).mkdir(exist_ok=True)
    write_json(folder / part / "preprocessor_config.json", image_processor(side).config)


def write_json(path: Path, data: Any) -> None:
    """Writes JSON as a person would read it."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", "utf-8")

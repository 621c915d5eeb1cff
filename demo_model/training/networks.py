"""The demonstration checkpoint's networks at their sizes, and its folder in the published layout."""

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, I2VGenXLUNet
    from transformers import CLIPTextModel, CLIPTokenizer, CLIPVisionModelWithProjection

WIDTH = 128  # of the text and image embeddings, which the UNet's cross-attention reads
TOKENS = 77
VOCABULARY = 1024
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # CLIP's normalisation


@dataclass(frozen=True)
class Sizes:
    """Sizes of the networks; `tiny` serves the tests."""

    unet_channels: tuple[int, ...] = (64, 96, 96)
    unet_groups: int = 32
    head_dim: int = 32
    vae_channels: tuple[int, ...] = (32, 64, 128, 192)
    vae_groups: int = 8
    text_layers: int = 3
    vision_layers: int = 2
    vision_pixels: int = 64
    width: int = WIDTH
    pixels: int = 256

    @classmethod
    def tiny(cls) -> "Sizes":
        """Seconds on a CPU."""
        return cls((32, 32, 32), 8, 32, (8, 8, 16, 16), 4, 2, 1, 32, 32, 32)


SCHEDULER = {
    "num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "beta_start": 0.0001, "beta_end": 0.02,
    "clip_sample": False, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
    "set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "leading",
}  # fmt: skip


PARTS = {"vae": "vae", "unet": "unet", "text_encoder": "text", "image_encoder": "vision"}
"""The networks' folders, and their names here."""


@dataclass
class Networks:
    """The checkpoint's parts, each an instance of the class that `model_index.json` names."""

    vae: Any  # AutoencoderKL; the annotations of diffusers and transformers hinder more than they help
    unet: Any  # I2VGenXLUNet
    text: Any  # CLIPTextModel
    vision: Any  # CLIPVisionModelWithProjection

    def parts(self) -> dict[str, nn.Module]:
        """Folder name -> module."""
        return {name: getattr(self, field) for name, field in PARTS.items()}

    def with_parts_of(self, other: "Networks", names: Iterable[str], sizes: Sizes) -> "Networks":
        """These with some networks of another checkpoint, which are now for clips of the sizes' edge."""
        found = replace(self, **{PARTS[name]: getattr(other, PARTS[name]) for name in names})
        found.vae.register_to_config(sample_size=sizes.pixels)
        found.unet.register_to_config(sample_size=sizes.pixels // 8)
        return found


def build_unet(sizes: Sizes) -> "I2VGenXLUNet":
    """A UNet with attention on every level but the lowest."""
    from diffusers import I2VGenXLUNet

    attended = len(sizes.unet_channels) - 1
    return I2VGenXLUNet(
        sample_size=sizes.pixels // 8,
        down_block_types=("CrossAttnDownBlock3D",) * attended + ("DownBlock3D",),
        up_block_types=("UpBlock3D",) + ("CrossAttnUpBlock3D",) * attended,
        block_out_channels=sizes.unet_channels,
        layers_per_block=1,
        norm_num_groups=sizes.unet_groups,
        cross_attention_dim=sizes.width,
        attention_head_dim=sizes.head_dim,
    )


def build_vae(sizes: Sizes) -> "AutoencoderKL":
    """An autoencoder with four latent channels and a factor of eight."""
    from diffusers import AutoencoderKL

    blocks = len(sizes.vae_channels)
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * blocks, "up_block_types": ("UpDecoderBlock2D",) * blocks,
        "block_out_channels": sizes.vae_channels,
    }  # fmt: skip
    return AutoencoderKL(
        **shape,
        layers_per_block=1,
        norm_num_groups=sizes.vae_groups,
        sample_size=sizes.pixels,
        scaling_factor=1.0,
    )


def build_text(sizes: Sizes, end_token: int) -> "CLIPTextModel":
    """A text encoder of which the last layer is skipped, as the published pipeline does."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=sizes.width, intermediate_size=4 * sizes.width,
        projection_dim=sizes.width, num_hidden_layers=sizes.text_layers, num_attention_heads=sizes.width // 32,
        max_position_embeddings=TOKENS, hidden_act="gelu", bos_token_id=end_token - 1, eos_token_id=end_token,
        pad_token_id=end_token,
    )  # fmt: skip
    return CLIPTextModel(config)


def build_vision(sizes: Sizes) -> "CLIPVisionModelWithProjection":
    """An image encoder whose projection the UNet reads as four tokens."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=sizes.width, intermediate_size=2 * sizes.width, projection_dim=sizes.width,
        num_hidden_layers=sizes.vision_layers, num_attention_heads=sizes.width // 32,
        image_size=sizes.vision_pixels, patch_size=8, hidden_act="gelu",
    )  # fmt: skip
    return CLIPVisionModelWithProjection(config)


def build(sizes: Sizes, seed: int, end_token: int = VOCABULARY - 1) -> Networks:
    """Networks with weights drawn from the seed."""
    torch.manual_seed(seed)
    return Networks(build_vae(sizes), build_unet(sizes), build_text(sizes, end_token), build_vision(sizes))


def build_scheduler() -> "DDIMScheduler":
    """The published schedule."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(**SCHEDULER)


def train_tokenizer(captions: list[str]) -> "CLIPTokenizer":
    """Byte pairs learnt from the captions, so that each of their words is one token."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2 - 256, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner.train_from_iterator(captions, trainer)
    merges: Any = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    symbols = alphabet + [f"{letter}</w>" for letter in alphabet]
    symbols += [joined for a, b in merges if (joined := a + b) not in symbols]
    symbols = list(dict.fromkeys(symbols))[: VOCABULARY - 2]
    symbols += [f"<|unused{k}|>" for k in range(VOCABULARY - 2 - len(symbols))]
    symbols += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {symbol: row for row, symbol in enumerate(symbols)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=TOKENS)


def save_folder(folder: Path, networks: Networks, sizes: Sizes) -> None:
    """Writes the checkpoint's weights and configurations in half precision; the tokenizer is kept as it is."""
    for name, module in networks.parts().items():
        _save_half(folder / name, module)
    build_scheduler().save_pretrained(folder / "scheduler")
    edge = sizes.vision_pixels
    extractor = {
        "crop_size": {"height": edge, "width": edge}, "do_center_crop": True, "do_convert_rgb": True,
        "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN, "image_std": STD,
        "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 1 / 255,
        "size": {"shortest_edge": edge},
    }  # fmt: skip
    _write_json(folder / "feature_extractor" / "preprocessor_config.json", extractor)
    index = {
        "_class_name": "I2VGenXLPipeline", "_diffusers_version": "0.42.1",
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
        "scheduler": ["diffusers", "DDIMScheduler"], "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "I2VGenXLUNet"],
        "vae": ["diffusers", "AutoencoderKL"],
    }  # fmt: skip
    _write_json(folder / "model_index.json", index)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=2) + "\n")


def save_tokenizer(tokenizer: "CLIPTokenizer", folder: Path) -> None:
    """Writes the tokenizer's files, with the published `vocab.json` and `merges.txt` beside the newer one."""
    tokenizer.save_pretrained(folder)
    model = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]
    _write_json(folder / "vocab.json", model["vocab"])
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    write_text(folder / "merges.txt", "\n".join(["#version: 0.2", *merges]) + "\n")


def _save_half(folder: Path, module: Any) -> None:
    """Saves a copy in half precision, so that training goes on in full precision."""
    from copy import deepcopy

    variant = "fp16"
    deepcopy(module).to("cpu", torch.float16).save_pretrained(folder, variant=variant, safe_serialization=True)


def load_folder(folder: Path, device: torch.device, dtype: torch.dtype) -> Networks:
    """Loads a checkpoint folder with the published classes."""
    from diffusers import AutoencoderKL, I2VGenXLUNet
    from transformers import CLIPTextModel, CLIPVisionModelWithProjection

    def load(kind: Any, name: str) -> Any:
        module = kind.from_pretrained(folder / name, variant="fp16", use_safetensors=True)
        return module.to(device, dtype).eval()

    return Networks(
        load(AutoencoderKL, "vae"),
        load(I2VGenXLUNet, "unet"),
        load(CLIPTextModel, "text_encoder"),
        load(CLIPVisionModelWithProjection, "image_encoder"),
    )


def load_tokenizer(folder: Path) -> "CLIPTokenizer":
    """The checkpoint's tokenizer."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(folder / "tokenizer")


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)

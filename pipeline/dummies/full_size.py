"""A checkpoint at the published size with random weights, so that anyone can measure without a download.

Speed does not depend on the weights. The small parts (tokenizer, scheduler, picture processor, index) are
those of the tiny checkpoint; the networks get the published configurations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from ..models.checkpoints.diffusers_folder import INDEX
from ..models.parts import from_config
from .i2vgen_xl import TinySizes, write_tiny_checkpoint
from .svd import write_tiny_svd

CLIP_VISION: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "hidden_act": "gelu",
    "image_size": 224,
    "patch_size": 14,
    "projection_dim": 1024,
}
VAE: dict[str, Any] = {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2}


@dataclass(frozen=True)
class FullSize:
    """A published size: the function that writes the tiny checkpoint, and the changed settings by part.

    Weights are stored in `precision`, fp16 or bf16: a process that runs in it maps the files and copies nothing.
    """

    write_tiny: Callable[[Path], object]
    changes: Mapping[str, Mapping[str, Any]]
    precision: str = "fp16"


FULL_SIZES: dict[str, FullSize] = {
    "i2vgen-xl-random": FullSize(
        lambda folder: write_tiny_checkpoint(folder, TinySizes(picture=224, patch=14)),
        {
            "unet": {
                "sample_size": 32,
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": ["CrossAttnDownBlock3D"] * 3 + ["DownBlock3D"],
                "up_block_types": ["UpBlock3D"] + ["CrossAttnUpBlock3D"] * 3,
                "layers_per_block": 2,
                "norm_num_groups": 32,
                "cross_attention_dim": 1024,
                "attention_head_dim": 64,
            },
            "vae": {**VAE, "norm_num_groups": 32},
            "text_encoder": {
                "hidden_size": 1024,
                "intermediate_size": 4096,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "hidden_act": "gelu",
                "projection_dim": 1024,
                "vocab_size": 49408,
            },
            "image_encoder": CLIP_VISION,
        },
    ),
    "svd-xt-random": FullSize(
        write_tiny_svd,
        {
            "unet": {
                "sample_size": 96,
                "block_out_channels": [320, 640, 1280, 1280],
                "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
                "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
                "layers_per_block": 2,
                "cross_attention_dim": 1024,
                "num_attention_heads": [5, 10, 20, 20],
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 768,
                "num_frames": 25,
            },
            "vae": VAE,
            "image_encoder": CLIP_VISION,
        },
    ),
}
"""By the checkpoint's folder."""
AWAKE_STD = 0.02


def write_full_checkpoint(folder: Path, device: torch.device, seed: int) -> Path:
    """Writes the checkpoint that the folder is named for, in half precision, as one file a network.

    Weights are drawn on `device`, where a GPU needs seconds. A folder that is complete is left as it is.
    """
    if (folder / INDEX).is_file():
        return folder
    return write_random_checkpoint(FULL_SIZES[folder.name], folder, device, seed)


def write_random_checkpoint(full: FullSize, folder: Path, device: torch.device, seed: int) -> Path:
    """Writes a checkpoint with its changed parts in half precision, as `write_full_checkpoint` does."""
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        full.write_tiny(unfinished)
        torch.manual_seed(seed)
        index = json.loads((unfinished / INDEX).read_text("utf-8"))
        for part, changes in full.changes.items():
            _write_network(unfinished / part, index[part], changes, device, full.precision)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_network(
    folder: Path, entry: tuple[str, str], changes: Mapping[str, Any], device: torch.device, precision: str
) -> None:
    """Puts a network of the changed configuration in place of the one in `folder`."""
    config = {**json.loads((folder / "config.json").read_text("utf-8")), **changes}
    for path in folder.iterdir():
        path.unlink()
    with torch.device(device):
        network = network_of(entry, config)
    _wake(network)
    if precision == "fp16":
        network.half().cpu().save_pretrained(folder, variant="fp16")
    else:
        network.bfloat16().cpu().save_pretrained(folder)
    del network


def network_of(entry: tuple[str, str], config: Mapping[str, Any]) -> Any:
    """A network by the library and class that model_index.json names, with its constructor's weights."""
    library, class_name = entry
    return from_config(getattr(import_module(library), class_name), config)


def _wake(network: torch.nn.Module) -> None:
    """Fills weights that start at zero, whose layers no comparison would see."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and not bool(weight.any()):
            torch.nn.init.normal_(weight, std=AWAKE_STD)

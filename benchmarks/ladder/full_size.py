"""A checkpoint at the published size with random weights, so that anyone can measure without a download.

Speed does not depend on the weights. The small parts (tokenizer, scheduler, picture processor, index) are
those of the tiny checkpoint; the networks get the published configurations.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...pipeline.models.checkpoint import INDEX
from ...pipeline.models.tiny import TinySizes, write_tiny_checkpoint

NAME = "i2vgen-xl-random"
CHANGES: dict[str, dict[str, Any]] = {
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
    "vae": {"block_out_channels": [128, 256, 512, 512], "layers_per_block": 2, "norm_num_groups": 32},
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "projection_dim": 1024,
        "vocab_size": 49408,
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
    },
}
"""By part, what the published configuration says otherwise than the tiny one."""
AWAKE_STD = 0.02


def write_full_checkpoint(folder: Path, device: torch.device, seed: int) -> Path:
    """Writes the checkpoint in half precision, as one file a network; weights are drawn on `device`, where a
    GPU needs seconds. A folder that is complete is left as it is."""
    if (folder / INDEX).is_file():
        return folder
    unfinished = folder.with_name(f"{folder.name}.unfinished")
    try:
        write_tiny_checkpoint(unfinished, TinySizes(picture=224, patch=14))
        torch.manual_seed(seed)
        for part, changes in CHANGES.items():
            _write_network(unfinished / part, changes, device)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return folder


def _write_network(folder: Path, changes: dict[str, Any], device: torch.device) -> None:
    """Puts a network of the changed configuration in place of the one in `folder`."""
    config = json.loads((folder / "config.json").read_text("utf-8")) | changes
    for path in folder.iterdir():
        path.unlink()
    with torch.device(device):
        network = _maker(folder.name)(config)
    _wake(network)
    network.half().cpu().save_pretrained(folder, variant="fp16")
    del network


def _maker(part: str) -> Callable[[dict[str, Any]], Any]:
    if part in ("unet", "vae"):
        from diffusers import AutoencoderKL, I2VGenXLUNet

        return I2VGenXLUNet.from_config if part == "unet" else AutoencoderKL.from_config
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    if part == "text_encoder":
        return lambda config: CLIPTextModel(CLIPTextConfig.from_dict(config))
    return lambda config: CLIPVisionModelWithProjection(CLIPVisionConfig.from_dict(config))


def _wake(network: torch.nn.Module) -> None:
    """Fills weights that start at zero, whose layers no comparison would see."""
    for module in network.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, torch.nn.Parameter) and not bool(weight.any()):
            torch.nn.init.normal_(weight, std=AWAKE_STD)

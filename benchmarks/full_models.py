"""Models of the published sizes without their weights, for computations of memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..pipeline.dummies.full_size import FULL_SIZES, network_of
from ..pipeline.dummies.wan import write_tiny_wan
from ..pipeline.models.base import VideoModel
from ..pipeline.models.checkpoints.diffusers_folder import Checkpoint, Part
from ..pipeline.models.diffusers_family import DiffusersFamily
from ..pipeline.models.registry import open_model
from ..pipeline.request import ClipSize
from .call_rows import CONFIGS

Changes = Mapping[str, Mapping[str, Any]]
UMT5_XXL: dict[str, Any] = {
    "vocab_size": 256384,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_heads": 64,
    "num_layers": 24,
}
CLIP_H: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 14,
}
WAN21_VAE: dict[str, Any] = {"base_dim": 96, "dim_mult": [1, 2, 4, 4], "num_res_blocks": 2}
WAN22_VAE: dict[str, Any] = {**WAN21_VAE, "base_dim": 160, "decoder_base_dim": 256}
WITHOUT_PICTURE = {"image_dim": None, "added_kv_proj_dim": None}
TI2V: dict[str, Any] = {
    **CONFIGS["transformer"],
    **WITHOUT_PICTURE,
    "in_channels": 48,
    "out_channels": 48,
    "num_attention_heads": 24,
    "ffn_dim": 14336,
    "num_layers": 30,
}
A14B: dict[str, Any] = {**CONFIGS["transformer"], **WITHOUT_PICTURE}


@dataclass(frozen=True)
class Published:
    """A published model: its tiny checkpoint's writer, the changed settings, and the clip that it was trained for."""

    title: str
    write_tiny: Callable[[Path], object]
    changes: Changes
    size: ClipSize


def published_wan(title: str, kind: str, size: ClipSize, **changes: Mapping[str, Any]) -> Published:
    """A Wan, whose text encoder is the same in all."""
    return Published(title, partial(write_tiny_wan, kind=kind), {"text_encoder": UMT5_XXL, **changes}, size)


I2VGEN, SVD = (FULL_SIZES[name] for name in ("i2vgen-xl-random", "svd-xt-random"))
PUBLISHED = (
    Published("I2VGen-XL", I2VGEN.write_tiny, I2VGEN.changes, ClipSize(1280, 704, 16)),
    Published("SVD-XT", SVD.write_tiny, SVD.changes, ClipSize(1024, 576, 25)),
    published_wan(
        "Wan 2.2 TI2V-5B", "ti2v", ClipSize(1280, 704, 121), transformer=TI2V, vae=WAN22_VAE
    ),
    published_wan(
        "Wan 2.1 I2V 14B",
        "wan21",
        ClipSize(832, 480, 81),
        transformer=CONFIGS["transformer"],
        vae=WAN21_VAE,
        image_encoder=CLIP_H,
    ),
    published_wan(
        "Wan 2.2 I2V A14B", "a14b", ClipSize(832, 480, 81), transformer=A14B, transformer_2=A14B, vae=WAN21_VAE
    ),
)  # fmt: skip
"""In the order of their weights. I2VGen-XL was published at 1280x704, and runs at 512x512 in the other figures."""


@dataclass(frozen=True)
class CountedPart(Part):
    """A part with a count of weights and without the weights."""

    counted: int = 0

    @property
    def elements(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.counted


def full_model(published: Published, folder: Path) -> VideoModel:
    """The model with the published configurations; a tiny one is written into `folder` for all that has no weights.

    Its sizes are right, and it has no weights to load.
    """
    published.write_tiny(folder)
    tiny = open_model(folder)
    if not isinstance(tiny, DiffusersFamily):
        raise TypeError(f"Expected a model of diffusers' layout, found {type(tiny).__name__}.")
    index = tiny.checkpoint.index
    parts = {
        name: _full(part, index.get(name, ("", "")), published.changes[name]) if name in published.changes else part
        for name, part in tiny.checkpoint.parts.items()
    }
    return type(tiny)(Checkpoint(folder, parts, index))


def write_configuration(published: Published, folder: Path) -> Path:
    """Writes the published configurations into `folder`, as a download without any weights would leave them."""
    published.write_tiny(folder)
    for part, changes in published.changes.items():
        path = folder / part / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    return folder


def _full(part: Part, entry: tuple[str, str], changes: Mapping[str, Any]) -> Part:
    """The part with other settings, and with the numbers counted that its network would hold."""
    config = {**part.config, **changes}
    with torch.device("meta"):
        network = network_of(entry, config)
    counted = sum(tensor.numel() for tensor in network.parameters())  # each once, however often it is shared
    whole = replace(part, config=config)
    return CountedPart(**{name: getattr(whole, name) for name in Part.__dataclass_fields__}, counted=counted)

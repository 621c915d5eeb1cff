"""Single files as ComfyUI's own loaders take them: which networks of a family here one holds, by its tensors.

Only a file's header is looked at, which names every tensor with its dtype and shape.
"""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

MOST_HEADER_BYTES = 64 << 20
SUFFIX = ".safetensors"
DENOISER, VAE, TEXT_ENCODER, IMAGE_ENCODER = "denoiser", "VAE", "text encoder", "image encoder"
"""Roles of networks."""
ALONE, WITH_ALL = "Load Diffusion Model", "Load Checkpoint Image Only (img2vid model)"
"""ComfyUI's loaders of a denoiser alone, and of all that a clip needs."""
READ = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8}
"""Bytes of an element by the dtypes that networks are loaded from; all others are some quantization's."""
NOT_WEIGHTS = ("spiece_model", "position_ids")
"""Endings of tensors that may have any dtype."""
MARKS = {
    "head.modulation": DENOISER,
    "input_blocks.0.0.weight": DENOISER,
    "decoder.middle.0.residual.0.gamma": VAE,
    "decoder.conv_out.time_mix_conv.weight": VAE,
    "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": TEXT_ENCODER,
    "vision_model.embeddings.class_embedding": IMAGE_ENCODER,
    "transformer.resblocks.0.attn.in_proj_weight": IMAGE_ENCODER,
}
"""Tensors that tell which network they are of, without the prefix of a file that holds several."""
SVD, WAN21, FLF2V, A14B, TI2V = "svd", "wan21", "flf2v", "a14b", "ti2v"
"""Denoisers."""
MODELS = {
    SVD: ("Stable Video Diffusion", "stable-video-diffusion-img2vid-xt"),
    WAN21: ("Wan 2.1", "Wan2.1-I2V-14B-480P-Diffusers"),
    FLF2V: ("Wan 2.1 between a first and a last picture", "Wan2.1-I2V-14B-480P-Diffusers"),
    A14B: ("Wan 2.2 A14B, one of its two experts", "Wan2.2-I2V-A14B-Diffusers"),
    TI2V: ("Wan 2.2 TI2V", "Wan2.2-TI2V-5B-Diffusers"),
}
"""Title of a denoiser's model, and the folder that is published of it."""

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class StoredNetwork:
    """A network in a file.

    `kinds` are what a denoiser may ask for, such as a text encoder of its width; `needs` are the kinds that this one
    asks for, by role.
    """

    role: str
    kinds: frozenset[str]
    prefix: str
    is_quantized: bool
    element_bytes: int
    needs: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SingleFile:
    """What a file holds."""

    path: Path
    networks: tuple[StoredNetwork, ...]

    def network(self, role: str) -> StoredNetwork | None:
        """The network of a role, or None."""
        return next((network for network in self.networks if network.role == role), None)

    @property
    def model(self) -> str | None:
        """The denoiser's model, one of `MODELS`; None for a file without a denoiser."""
        denoiser = self.network(DENOISER)
        return next(iter(denoiser.kinds)) if denoiser else None

    @property
    def title(self) -> str:
        """The model's title."""
        return MODELS[self.model][0] if self.model else ""

    @property
    def published(self) -> str:
        """Folder that is published of the model."""
        return MODELS[self.model][1] if self.model else ""

    @property
    def others(self) -> tuple[str, ...]:
        """Networks beside the denoiser, in words."""
        return tuple(f"{'an' if role[0] in 'aei' else 'a'} {role}" for role in self._roles if role != DENOISER)

    @property
    def _roles(self) -> list[str]:
        return [network.role for network in self.networks]

    @property
    def loader(self) -> str:
        """ComfyUI's own node that loads the file."""
        return WITH_ALL if VAE in self._roles else ALONE

    @property
    def content(self) -> str:
        """The networks in the file, in words."""
        return " and ".join(["the denoiser" if self.others else "the denoiser alone", *self.others])


def single_file(path: Path) -> SingleFile | None:
    """What a file holds; None for one that is unreadable, or of no network that is known here."""
    try:
        stat = path.stat()
        return _described(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _described(path: Path, size_bytes: int, changed_ns: int) -> SingleFile | None:
    header = _header(path, size_bytes)
    if not any(mark.encode() in header for mark in MARKS):
        return None  # without parsing what is of no interest here, as most files of a collection are
    try:
        table = {name: each for name, each in json.loads(header).items() if name != "__metadata__"}
        shapes = {name: tuple(each["shape"]) for name, each in table.items()}
        found = tuple(_networks(table, shapes))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    return SingleFile(path, found) if found else None


def _header(path: Path, size_bytes: int) -> bytes:
    """The table at the beginning of a safetensors file; empty for another file."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return stream.read(length) if 0 < length <= min(MOST_HEADER_BYTES, size_bytes) else b""


def _networks(table: Mapping[str, Mapping[str, Any]], shapes: Shapes) -> Iterator[StoredNetwork]:
    for mark, role in MARKS.items():
        prefixes = [name.removesuffix(mark) for name in shapes if name == mark or name.endswith(f".{mark}")]
        if not prefixes:
            continue
        prefix = min(prefixes, key=len)
        own = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        kinds, needs = KINDS[role](own)
        if not kinds:
            continue
        weights = [each for name, each in table.items() if name.startswith(prefix) and not name.endswith(NOT_WEIGHTS)]
        largest = max(weights, key=lambda each: math.prod(each["shape"]))
        is_quantized = any(each["dtype"] not in READ for each in weights)
        yield StoredNetwork(role, frozenset(kinds), prefix, is_quantized, READ.get(largest["dtype"], 1), needs)


def _denoiser(own: Shapes) -> tuple[set[str], dict[str, str]]:
    """The denoiser's model, and what it needs beside itself."""
    if "head.modulation" in own:
        return _wan(own)
    attended = own.get("input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight", (0, 0))[1:2]
    if own["input_blocks.0.0.weight"][1:2] != (8,) or not any(".time_stack." in name for name in own):
        return set(), {}
    return {SVD}, {VAE: "svd", IMAGE_ENCODER: f"projection to {attended[0]}"}


def _wan(own: Shapes) -> tuple[set[str], dict[str, str]]:
    channels = own.get("patch_embedding.weight", ())[1:2]
    text = own.get("text_embedding.0.weight", (0, 0))[1]
    needs = {VAE: "wan of 16", TEXT_ENCODER: f"umt5 of {text}"}
    if channels == (48,):
        return {TI2V}, {**needs, VAE: "wan of 48"}
    if channels != (36,):
        return set(), {}
    picture = own.get("img_emb.proj.1.weight")
    if picture is None:
        return {A14B}, needs
    return {FLF2V if "img_emb.emb_pos" in own else WAN21}, {**needs, IMAGE_ENCODER: f"width {picture[1]}"}


def _vae(own: Shapes) -> tuple[set[str], dict[str, str]]:
    if "decoder.conv_out.time_mix_conv.weight" in own:
        return {"svd"}, {}
    return {f"wan of {own['conv2.weight'][0]}"} if "conv2.weight" in own else set(), {}


def _text_encoder(own: Shapes) -> tuple[set[str], dict[str, str]]:
    return {f"umt5 of {own['shared.weight'][1]}"} if "shared.weight" in own else set(), {}


def _image_encoder(own: Shapes) -> tuple[set[str], dict[str, str]]:
    names = ("vision_model.embeddings.patch_embedding.weight", "conv1.weight")
    width = next((own[name][0] for name in names if name in own), 0)
    projection = own["visual_projection.weight"][0] if "visual_projection.weight" in own else own.get("proj", (0, 0))[1]
    return {f"width {width}", f"projection to {projection}"} if width else set(), {}


KINDS = {DENOISER: _denoiser, VAE: _vae, TEXT_ENCODER: _text_encoder, IMAGE_ENCODER: _image_encoder}
"""Functions from a network's tensors to its kinds, none for another network's, and to what it needs."""
EXPERTS = ("high", "low")
"""Words in the names of A14B's files, of the expert that begins a clip and of the one that ends it: nothing in the
files tells the two apart."""


def expert_of(path: Path) -> str | None:
    """Which of `EXPERTS` a file is by its name; None where the name has neither word, or both."""
    found = [word for word in EXPERTS if word in path.name.lower()]
    return found[0] if len(found) == 1 else None


def other_expert(path: Path) -> str:
    """The name of the other expert's file beside one of `EXPERTS`, in small letters."""
    own = expert_of(path) or ""
    return re.sub(own, EXPERTS[own == EXPERTS[0]], path.name.lower())

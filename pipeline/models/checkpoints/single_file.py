"""Single files as ComfyUI's own loaders take them: which model of a family here one holds, by its tensors' names.

Only a file's header is looked at, which names every tensor with its shape.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

MOST_HEADER_BYTES = 64 << 20
SUFFIX = ".safetensors"
PREFIX = re.compile(r"^(?:model\.)?diffusion_model\.")
"""Beginning of a denoiser's tensors in a file that may hold other networks too."""
PARTS = {
    "an image encoder": ("conditioner.", "cond_stage_model.", "embedder.", "clip_vision."),
    "a VAE": ("first_stage_model.", "vae."),
    "a text encoder": ("text_encoders.",),
}
"""Networks beside the denoiser, by the beginnings of their tensors' names."""
ALONE, WITH_ALL = "Load Diffusion Model", "Load Checkpoint Image Only (img2vid model)"
"""ComfyUI's loaders of a denoiser alone, and of all that a clip needs."""


@dataclass(frozen=True)
class SingleFile:
    """What a file holds: the model's title, the folder that is published of it, and the networks in the file."""

    path: Path
    title: str
    published: str
    others: tuple[str, ...]
    """Networks beside the denoiser."""

    @property
    def loader(self) -> str:
        """ComfyUI's own node that loads the file."""
        return WITH_ALL if "a VAE" in self.others else ALONE

    @property
    def content(self) -> str:
        """The networks in the file, in words."""
        return " and ".join(["the denoiser" if self.others else "the denoiser alone", *self.others])


def single_file(path: Path) -> SingleFile | None:
    """What a file holds; None for one that is unreadable, or of no model from picture to video that is known here."""
    try:
        stat = path.stat()
        return _described(path, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _described(path: Path, size_bytes: int, changed_ns: int) -> SingleFile | None:
    header = _header(path, size_bytes)
    if not header or not any(mark in header for mark in (b"time_stack", b"head.modulation")):
        return None  # without parsing what is of no interest here, as most files of a collection are
    try:
        shapes = {name: tuple(each["shape"]) for name, each in json.loads(header).items() if name != "__metadata__"}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    found = next(_models(shapes), None)
    others = tuple(part for part, starts in PARTS.items() if any(name.startswith(starts) for name in shapes))
    return None if found is None else SingleFile(path, *found, others)


def _header(path: Path, size_bytes: int) -> bytes:
    """The table at the beginning of a safetensors file; empty for another file."""
    with path.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        return stream.read(length) if 0 < length <= min(MOST_HEADER_BYTES, size_bytes) else b""


def _models(shapes: Mapping[str, tuple[int, ...]]) -> Iterator[tuple[str, str]]:
    """Title and published folder of the model whose denoiser these tensors are."""
    own = {PREFIX.sub("", name): shape for name, shape in shapes.items()}
    first = own.get("input_blocks.0.0.weight", ())
    if first[1:2] == (8,) and any(".time_stack." in name for name in own):
        yield "Stable Video Diffusion", "stable-video-diffusion-img2vid-xt"
    patches = own.get("patch_embedding.weight", ())[1:2]
    if "head.modulation" not in own:
        return
    if patches == (48,):
        yield "Wan 2.2 TI2V", "Wan2.2-TI2V-5B-Diffusers"
    elif patches == (36,) and "img_emb.emb_pos" in own:
        yield "Wan 2.1 between a first and a last picture", "Wan2.1-I2V-14B-480P-Diffusers"
    elif patches == (36,) and "img_emb.proj.1.weight" in own:
        yield "Wan 2.1", "Wan2.1-I2V-14B-480P-Diffusers"
    elif patches == (36,):
        yield "Wan 2.2 A14B, one of its two experts", "Wan2.2-I2V-A14B-Diffusers"

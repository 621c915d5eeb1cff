"""Names that Wan's publishers give to modules with other names in diffusers; most LoRAs for Wan use the publishers'."""

from __future__ import annotations

import re

BLOCK = r"(blocks\.\d+\.)"
NAMES = (
    (BLOCK + r"attn1\.", r"\1self_attn."),
    (BLOCK + r"attn2\.", r"\1cross_attn."),
    (r"attn\.to_([qkv])$", r"attn.\1"),
    (r"attn\.to_out\.0$", r"attn.o"),
    (r"attn\.add_([kv])_proj$", r"attn.\1_img"),
    (r"attn\.norm_added_k$", r"attn.norm_k_img"),
    (BLOCK + r"norm2$", r"\1norm3"),
    (BLOCK + r"ffn\.net\.0\.proj$", r"\1ffn.0"),
    (BLOCK + r"ffn\.net\.2$", r"\1ffn.2"),
    (BLOCK + r"scale_shift_table$", r"\1modulation"),
    (r"^scale_shift_table$", r"head.modulation"),
    (r"^proj_out$", r"head.head"),
    (r"^condition_embedder\.(t\w+)_embedder\.linear_1$", r"\1_embedding.0"),
    (r"^condition_embedder\.(t\w+)_embedder\.linear_2$", r"\1_embedding.2"),
    (r"^condition_embedder\.time_proj$", r"time_projection.1"),
    (r"^condition_embedder\.image_embedder\.norm1$", r"img_emb.proj.0"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj$", r"img_emb.proj.1"),
    (r"^condition_embedder\.image_embedder\.ff\.net\.2$", r"img_emb.proj.3"),
    (r"^condition_embedder\.image_embedder\.norm2$", r"img_emb.proj.4"),
)
"""Patterns over diffusers' names, applied one after another."""
PICTURE = re.compile(
    r"^(?:img_emb|condition_embedder_image_embedder)_"
    r"|^blocks_\d+_(?:cross_attn_(?:k|v|norm_k)_img|attn2_(?:add_k_proj|add_v_proj|norm_added_k))$"
)
"""Modules that take the picture encoder's output, which Wan 2.1 I2V has and Wan 2.2 has not: both ways to name them,
with underscores for dots."""


def published(module: str) -> str:
    """A module's name in Wan's own checkpoints, by its name in diffusers'."""
    for pattern, name in NAMES:
        module = re.sub(pattern, name, module)
    return module


def picture_part(module: str) -> str | None:
    """The part of a Wan with a picture encoder that a module is in, by its plain name; None for any other module."""
    return "picture encoder" if PICTURE.search(module) else None

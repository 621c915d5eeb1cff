"""Names that DynamiCrafter's published files give to modules with other names in diffusers.

Both name a layer by its place: the published ones count all places of the way down and of the way up, diffusers'
count them level by level.
"""

from __future__ import annotations

import re

DOWN_LAYERS, UP_LAYERS = 2, 3
"""Residual blocks of a level, on the way down and on the way up."""
IN_A_BLOCK = (
    (r"resnets\.(\d+)\.norm1", "0.in_layers.0"),
    (r"resnets\.(\d+)\.conv1", "0.in_layers.2"),
    (r"resnets\.(\d+)\.time_emb_proj", "0.emb_layers.1"),
    (r"resnets\.(\d+)\.norm2", "0.out_layers.0"),
    (r"resnets\.(\d+)\.conv2", "0.out_layers.3"),
    (r"resnets\.(\d+)\.conv_shortcut", "0.skip_connection"),
    (r"temp_convs\.(\d+)\.(.+)", r"0.temopral_conv.\2"),
    (r"attentions\.(\d+)\.(.+)", r"1.\2"),
    (r"temp_attentions\.(\d+)\.(.+)", r"2.\2"),
)
"""Patterns over a layer's name within a block of diffusers, and its name within a place; the number is the layer."""
OUTSIDE = {
    "time_embedding.linear_1": ("time_embed.0",),
    "time_embedding.linear_2": ("time_embed.2",),
    "fps_embedding.linear_1": ("fps_embedding.0", "framestride_embed.0"),
    "fps_embedding.linear_2": ("fps_embedding.2", "framestride_embed.2"),
    "conv_in": ("input_blocks.0.0",),
    "conv_norm_out": ("out.0",),
    "conv_out": ("out.2",),
}
"""The 256 model's file has the later of two names."""


def published(module: str) -> tuple[str, ...]:
    """A module's names in the published files, by its name in diffusers; none for one that they do not have."""
    if module in OUTSIDE:
        return OUTSIDE[module]
    if module.startswith("transformer_in."):
        return (module.replace("transformer_in.", "init_attn.0.", 1),)
    match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d+))?\.(.+)", module)
    if match is None:
        return ()
    side, level, rest = match.group(1), int(match.group(2) or 0), match.group(3)
    found = _sampler(side, level, rest) or _layer(side, level, rest)
    return (found,) if found else ()


def _sampler(side: str, level: int, rest: str) -> str | None:
    if side == "down" and rest == "downsamplers.0.conv":
        return f"input_blocks.{(DOWN_LAYERS + 1) * (level + 1)}.0.op"
    if side == "up" and rest == "upsamplers.0.conv":
        # The last place of a level, behind its transformers where it has some: the topmost has none.
        return f"output_blocks.{UP_LAYERS * level + UP_LAYERS - 1}.{3 if level else 1}.conv"
    return None


def _layer(side: str, level: int, rest: str) -> str | None:
    for pattern, name in IN_A_BLOCK:
        match = re.fullmatch(pattern, rest)
        if match is not None:
            layer, within = int(match.group(1)), match.expand(name)
            return f"{_place(side, level, layer)}.{within}" if side != "mid" else _in_the_middle(layer, within)
    return None


def _place(side: str, level: int, layer: int) -> str:
    if side == "down":
        return f"input_blocks.{1 + (DOWN_LAYERS + 1) * level + layer}"
    return f"output_blocks.{UP_LAYERS * level + layer}"


def _in_the_middle(layer: int, within: str) -> str:
    """The middle's places follow each other: a residual block, two transformers, a residual block."""
    kind, name = within.split(".", 1)
    return f"middle_block.{3 * layer if kind == '0' else kind}.{name}"

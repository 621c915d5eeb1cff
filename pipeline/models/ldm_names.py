"""Names that latent diffusion's files give to a UNet's modules, by diffusers' names of them.

Both name a layer by its place: the published ones count all places of the way down and of the way up, diffusers'
count them level by level.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

DOWN_LAYERS, UP_LAYERS = 2, 3
"""Residual blocks of a level, on the way down and on the way up."""
RESIDUAL = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
"""Layers of a residual block, by diffusers' names and the published ones."""


@dataclass(frozen=True)
class LdmNames:
    """The published names of one kind of UNet.

    `in_a_block` are patterns over a layer's name within a block of diffusers, and its name within a place; the first
    group is the layer's number. `outside` are the names of modules outside the blocks, `transformers` the number of
    transformers behind a residual block, each a place's part of its own.
    """

    in_a_block: tuple[tuple[str, str], ...]
    outside: Mapping[str, tuple[str, ...]]
    transformers: int

    def published(self, module: str) -> tuple[str, ...]:
        """A module's names in the published files, by its name in diffusers; none for one that they do not have."""
        if module in self.outside:
            return self.outside[module]
        match = re.fullmatch(r"(down|mid|up)_block(?:s\.(\d+))?\.(.+)", module)
        if match is None:
            return ()
        side, level, rest = match.group(1), int(match.group(2) or 0), match.group(3)
        found = self._sampler(side, level, rest) or self._layer(side, level, rest)
        return (found,) if found else ()

    def _sampler(self, side: str, level: int, rest: str) -> str | None:
        if side == "down" and rest == "downsamplers.0.conv":
            return f"input_blocks.{(DOWN_LAYERS + 1) * (level + 1)}.0.op"
        if side == "up" and rest == "upsamplers.0.conv":
            # The last part of a level's last place, behind its transformers where it has some: the topmost has none.
            return f"output_blocks.{UP_LAYERS * level + UP_LAYERS - 1}.{self.transformers + 1 if level else 1}.conv"
        return None

    def _layer(self, side: str, level: int, rest: str) -> str | None:
        for pattern, name in self.in_a_block:
            match = re.fullmatch(pattern, rest)
            if match is not None:
                layer, within = int(match.group(1)), match.expand(name)
                return self._in_the_middle(layer, within) if side == "mid" else f"{_place(side, level, layer)}.{within}"
        return None

    def _in_the_middle(self, layer: int, within: str) -> str:
        """The middle's places follow each other: a residual block, the transformers, a residual block."""
        kind, name = within.split(".", 1)
        return f"middle_block.{(self.transformers + 1) * layer if kind == '0' else kind}.{name}"


def _place(side: str, level: int, layer: int) -> str:
    if side == "down":
        return f"input_blocks.{1 + (DOWN_LAYERS + 1) * level + layer}"
    return f"output_blocks.{UP_LAYERS * level + layer}"

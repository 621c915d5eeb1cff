"""Deep features of a UNet: what its last layers get from all those below, and where it is cut for them.

Source: DeepCache (Ma et al. 2023, arXiv:2312.00858), its shallowest branch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

SHALLOW_LAYERS = 2
"""Layers of the last block that a deep cache runs at every call, with as many inputs from the way down."""


def shallow_layers(block: Any) -> int:
    """Number of layers of the last block above the deep features."""
    return min(SHALLOW_LAYERS, len(block.resnets))


def deep_channels(unet: Mapping[str, Any]) -> int:
    """Channels of the deep features by the UNet's configuration: the last block's own, or those that enter it."""
    channels, layers = unet["block_out_channels"], unet.get("layers_per_block", 2)
    first = layers[0] if isinstance(layers, list) else layers
    return channels[0 if first + 1 > SHALLOW_LAYERS else min(1, len(channels) - 1)]

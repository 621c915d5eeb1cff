"""The network of ComfyUI's UPSCALE_MODEL, as engines are found for it."""

from __future__ import annotations

from typing import Any

from ...common.errors import InputError
from ...pipeline.filters.upscaling import TILE
from ...runtime.filters.upscale import UpscalerNetworks
from .memory import fitting_precision
from .tensor_file import file_of

WHOLE = "INTERNAL"
"""spandrel's word for networks that see the whole picture at a size of their own."""


def upscaler(model: Any, tile: int = TILE) -> UpscalerNetworks:
    """The model's network on tiles of so many pixels; raises InputError for one that tiles do not fit."""
    network, scale = getattr(model, "model", None), getattr(model, "scale", None)
    if network is None or not isinstance(scale, int) or scale < 1:
        raise InputError(f"Expected an UPSCALE_MODEL from Load Upscale Model, found a {type(model).__name__}.")
    channels = (getattr(model, "input_channels", 3), getattr(model, "output_channels", 3))
    if channels != (3, 3):
        raise InputError(f"Expected an upscale model from RGB to RGB, found {channels[0]} channels to {channels[1]}.")
    if getattr(getattr(model, "tiling", None), "name", "") == WHOLE:
        raise InputError("Expected an upscale model that takes tiles, found one that sees the whole picture at once.")
    multiple = getattr(getattr(model, "size_requirements", None), "multiple_of", 1)
    if tile % multiple:
        raise InputError(f"Expected tiles in multiples of {multiple} pixels for this upscale model, found {tile}.")
    architecture = getattr(getattr(model, "architecture", None), "id", type(network).__name__)
    path, sha256 = file_of(network)
    return UpscalerNetworks(path, sha256, f"{architecture} x{scale}", scale, tile)


def precision_of(model: Any) -> str:
    """The precision in which the model may run here: fp16 only where spandrel does not warn of it."""
    wanted = fitting_precision("auto")
    if wanted == "auto" and not getattr(model, "supports_half", True):
        return "bf16" if getattr(model, "supports_bfloat16", False) else "fp32"
    return wanted

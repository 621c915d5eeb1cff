"""Networks that ComfyUI's upscale loader opens, made again from their tensors by spandrel, which comes with ComfyUI."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from ...common.errors import EngineError
from ...common.spec import PRECISIONS
from ..fused.blocks import to_channels_last
from .dense_block import by_source

REWRITES = ("channels_last", "by_source")
"""Lossless rewrites: one memory layout from end to end, where all is convolutions, and dense blocks by source."""


class Upscaler(nn.Module):
    """A network whose input has this pack's name for it, in the memory layout that it computes in."""

    def __init__(self, network: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> None:
        super().__init__()
        self.network, self.layout = network, layout

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image [n, 3, height, width] from 0 to 1 -> the enlarged one."""
        return self.network(image.contiguous(memory_format=self.layout))


def load_network(path: str, precision: str, rewrites: str = "") -> nn.Module:
    """The network of a safetensors file of tensors, on the CPU, in that precision, with rewrites by commas.

    Raises EngineError where spandrel is missing, or knows no such network.
    """
    from safetensors.torch import load_file

    network = opened(load_file(path)).model.eval().requires_grad_(False)
    return rewritten(network.to(getattr(torch, PRECISIONS[precision])), rewrites.split(","))


def rewritten(network: nn.Module, rewrites: Sequence[str]) -> Upscaler:
    """A network with those of the `REWRITES` that serve it."""
    made = (by_source(network) if "by_source" in rewrites else network).requires_grad_(False)
    if "channels_last" in rewrites and not any(isinstance(layer, nn.Linear) for layer in made.modules()):
        return Upscaler(to_channels_last(made), torch.channels_last)
    return Upscaler(made)


def opened(tensors: dict[str, torch.Tensor]) -> Any:
    """spandrel's descriptor of the network that tensors belong to; raises EngineError."""
    try:
        import spandrel  # pyright: ignore[reportMissingImports] - ComfyUI's, and not among the pack's own
    except ImportError as error:
        raise EngineError("Upscale models need the package spandrel, which comes with ComfyUI, found none.") from error
    with suppress(ImportError):
        from spandrel_extra_arches import EXTRA_REGISTRY  # pyright: ignore[reportMissingImports]

        spandrel.MAIN_REGISTRY.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    try:
        return spandrel.ModelLoader(device="cpu").load_from_state_dict(tensors)
    except Exception as error:  # its own errors share no base
        raise EngineError(f"Expected tensors of a network that spandrel knows, found others: {error}.") from error


def code() -> str:
    """The version of the code that makes the networks."""
    try:
        return f"spandrel {version('spandrel')}"
    except PackageNotFoundError:
        return "no spandrel"

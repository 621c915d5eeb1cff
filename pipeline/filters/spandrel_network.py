"""Networks that ComfyUI's upscale loader opens, made again from their tensors by spandrel, which comes with ComfyUI."""

from __future__ import annotations

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import nn

from ...common.errors import EngineError
from ...common.spec import PRECISIONS


class Upscaler(nn.Module):
    """A network whose input has this pack's name for it."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Image [n, 3, height, width] from 0 to 1 -> the enlarged one."""
        return self.network(image)


def load_network(path: str, precision: str) -> nn.Module:
    """The network of a safetensors file of tensors, on the CPU, in that precision.

    Raises EngineError where spandrel is missing, or knows no such network.
    """
    from safetensors.torch import load_file

    network = opened(load_file(path)).model.eval().requires_grad_(False)
    return Upscaler(network.to(getattr(torch, PRECISIONS[precision])))


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

"""Source of a network, as plain data from which another process can load it."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_PACK = __name__.rsplit(".", 2)[0]


@dataclass(frozen=True)
class NetworkSource:
    """A function of the pack, by name, and its arguments: calling it gives the network on the CPU.

    `module` is counted from the pack's root, such as `pipeline.models.registry`: nothing outside the pack
    can be named. `size_bytes` is the size of the network's weights, for the check of memory and disk.
    """

    module: str
    function: str
    arguments: Mapping[str, str]
    size_bytes: int = 0

    def load(self) -> torch.nn.Module:
        """The network; errors are the function's own."""
        return getattr(importlib.import_module(f".{self.module}", _PACK), self.function)(**self.arguments)

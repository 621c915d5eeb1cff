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
    has_weights: bool = True
    """False where there is a configuration alone."""

    def load(self, *, hollow: bool = False) -> torch.nn.Module:
        """The network; a `hollow` one has its parameters on the device `meta`, where the function can give such a one.

        Errors are the function's own.
        """
        arguments = {**self.arguments, "hollow": "yes"} if hollow else self.arguments
        return getattr(importlib.import_module(f".{self.module}", _PACK), self.function)(**arguments)

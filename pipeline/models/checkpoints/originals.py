"""Weights that LoRAs change, kept as they are stored: the next LoRA, or none, reads none of them from disk again."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ....common.device import free_host_bytes

if TYPE_CHECKING:
    import torch

SHARE = 1 / 3
"""Of the host's free memory, at most, for weights that are kept."""

Key = tuple[str, str, str]
"""A tensor's part, variant and name."""


class Originals:
    """Stored tensors in host memory, shared by a model and all that are made of it with LoRAs.

    What exceeds the share is not kept, and is read from its file whenever it is needed.
    """

    def __init__(self, available: Callable[[], int | None] = free_host_bytes) -> None:
        self._available = available
        self._tensors: dict[Key, torch.Tensor] = {}
        self.size_bytes = 0

    def find(self, key: Key) -> torch.Tensor | None:
        """The tensor as stored, if it was kept."""
        return self._tensors.get(key)

    def keep(self, key: Key, tensor: torch.Tensor) -> None:
        """Keeps a copy, where there is room."""
        import torch

        if key not in self._tensors and self.has_room_for(tensor.nbytes):
            with torch.inference_mode(False):  # a tensor of that mode is no weight outside it
                self._tensors[key] = tensor.clone()
            self.size_bytes += tensor.nbytes

    def has_room_for(self, size_bytes: int) -> bool:
        """Whether so much more would be kept."""
        return self.size_bytes + size_bytes <= SHARE * ((self._available() or 0) + self.size_bytes)

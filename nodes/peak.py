"""How much of a GPU's memory a node's work took."""

from __future__ import annotations

import torch


class PeakMemory:
    """The most memory that PyTorch has held on a GPU since this was made; nothing to tell on other devices.

    TensorRT and ONNX Runtime keep their own beside it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def lines(self) -> list[str]:
        """What the node says of it, in GiB."""
        if self._device.type != "cuda":
            return []
        return [f"at most {torch.cuda.max_memory_allocated(self._device) / 2**30:.2f} GiB of VRAM by PyTorch"]

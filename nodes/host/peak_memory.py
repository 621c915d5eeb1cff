"""How much of a GPU's memory a node's work took."""

from __future__ import annotations

import torch


class PeakMemory:
    """The most memory that PyTorch has held on a GPU since this was made; nothing to tell on other devices.

    TensorRT and ONNX Runtime keep their own beside it. PyTorch counts its most once for the whole process: whoever
    else reads it finds that of the time since, too, for it can be begun anew and not be put back.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._before_bytes = device, 0
        if device.type == "cuda":
            self._before_bytes = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)

    def lines(self) -> list[str]:
        """What the node says of it, in GiB: the most, and what of it was there when the work began."""
        if self._device.type != "cuda":
            return []
        most_bytes = torch.cuda.max_memory_allocated(self._device)
        there = f", {self._before_bytes / 2**30:.2f} of it held before" if self._before_bytes <= most_bytes else ""
        return [f"at most {most_bytes / 2**30:.2f} GiB of VRAM by PyTorch{there}"]

"""Peak of a GPU's memory during a node's work."""

from __future__ import annotations

import torch


class PeakMemory:
    """Peak of PyTorch's memory on a GPU since this object was made; empty on other devices.

    TensorRT and ONNX Runtime keep their own memory beside it. PyTorch has one peak for the whole process: other
    readers find the peak since the same time, for it can be reset and not be restored.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._before_bytes = device, 0
        if device.type == "cuda":
            self._before_bytes = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)

    def lines(self) -> list[str]:
        """Line of the node on the peak in GiB, and on the part held before the work began."""
        if self._device.type != "cuda":
            return []
        most_bytes = torch.cuda.max_memory_allocated(self._device)
        there = f", {self._before_bytes / 2**30:.2f} of it held before" if self._before_bytes <= most_bytes else ""
        return [f"at most {most_bytes / 2**30:.2f} GiB of VRAM by PyTorch{there}"]

"""Custom nodes for the tests: steps to watch, interrupt and fail; the models in memory; a comparison of frames.

ComfyUI loads this file; nothing else imports it.
"""

import time

import comfy.model_management  # pyright: ignore[reportMissingImports]
import comfy.utils  # pyright: ignore[reportMissingImports]
import torch
from PIL import Image

STEP_S = 0.01


class ProbeSteps:
    """Takes `steps` steps, each with a progress report and a preview; fails before step `fails_at`."""

    CATEGORY = "tests"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        steps = ("INT", {"default": 3, "min": 1, "max": 1000})
        fails_at = ("INT", {"default": -1, "min": -1, "max": 1000})
        return {"required": {"steps": steps, "fails_at": fails_at}}

    @classmethod
    def IS_CHANGED(cls, **_: int) -> float:
        return float("nan")  # never taken from the cache

    def run(self, steps: int, fails_at: int) -> dict:
        bar = comfy.utils.ProgressBar(steps)
        for step in range(steps):
            if step == fails_at:
                raise ValueError(f"the probe fails at step {step}")
            time.sleep(STEP_S)
            preview = Image.new("RGB", (16, 8), (step % 256, 0, 0))
            bar.update_absolute(step + 1, steps, ("PNG", preview, None))
        return {"ui": {"steps": [steps]}}


class ProbeModels:
    """Tells what ComfyUI's memory manager holds: the models' class names, and their bytes together."""

    CATEGORY = "tests"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {}}

    @classmethod
    def IS_CHANGED(cls) -> float:
        return float("nan")

    def run(self) -> dict:
        held = [entry.model for entry in comfy.model_management.current_loaded_models if entry.model is not None]
        names = [type(patcher.model).__name__ for patcher in held]
        return {"ui": {"models": names, "bytes": [sum(patcher.loaded_size() for patcher in held)]}}


class ProbeDifference:
    """Tells by how much two batches of frames differ at most, and between which values the first lies."""

    CATEGORY = "tests"
    FUNCTION = "run"
    OUTPUT_NODE = True
    RETURN_TYPES = ()

    @classmethod
    def INPUT_TYPES(cls) -> dict:
        return {"required": {"a": ("IMAGE",), "b": ("IMAGE",)}}

    def run(self, a: torch.Tensor, b: torch.Tensor) -> dict:
        return {
            "ui": {
                "shapes": [list(a.shape), list(b.shape)],
                "difference": [float((a - b).abs().max())],
                "range": [float(a.min()), float(a.max())],
            }
        }


NODE_CLASS_MAPPINGS = {"ProbeSteps": ProbeSteps, "ProbeModels": ProbeModels, "ProbeDifference": ProbeDifference}

"""Custom nodes for the tests: one takes steps that can be watched, interrupted and failed, one counts models.

ComfyUI loads this file; nothing else imports it.
"""

import time

import comfy.model_management  # pyright: ignore[reportMissingImports]
import comfy.utils  # pyright: ignore[reportMissingImports]
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


NODE_CLASS_MAPPINGS = {"ProbeSteps": ProbeSteps, "ProbeModels": ProbeModels}

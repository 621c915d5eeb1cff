"""A custom node for the tests of the client: it takes steps that can be watched, interrupted and failed.

ComfyUI loads this file; nothing else imports it.
"""

import time

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


NODE_CLASS_MAPPINGS = {"ProbeSteps": ProbeSteps}

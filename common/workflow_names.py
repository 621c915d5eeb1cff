"""Names of the shipped workflows: the file's stem, which is the title that ComfyUI's page shows."""

from __future__ import annotations

from pathlib import Path

from .pack_paths import PACK

QUICK_START = "First video"
TWO_PROMPTS = "Two prompts for one picture"
SMOOTHER = "Smoother motion"
TWO_PHASES = "Larger in two phases"
UPSCALED = "Larger with an upscale model"
ONNX = "ONNX network on every frame"
SVD = "Stable Video Diffusion"
WAN21 = "Wan 2.1 14B"
WAN22 = "Wan 2.2 A14B"
WAN22_TI2V = "Wan 2.2 TI2V-5B"
DYNAMICRAFTER = "DynamiCrafter from one picture"
DYNAMICRAFTER_BETWEEN = "DynamiCrafter between pictures"
DYNAMICRAFTER_LOOP = "DynamiCrafter loop"
MIXED = "Mixed with core nodes"
CORE_MODEL = "Core model through engines"
LOW_MEMORY = "Low memory"
COMPARE = "Compare eager and engine"
PREBUILD = "Prebuild engines"

NAMES = (
    QUICK_START,
    TWO_PROMPTS,
    SMOOTHER,
    TWO_PHASES,
    UPSCALED,
    ONNX,
    SVD,
    WAN21,
    WAN22,
    WAN22_TI2V,
    DYNAMICRAFTER,
    DYNAMICRAFTER_BETWEEN,
    DYNAMICRAFTER_LOOP,
    MIXED,
    CORE_MODEL,
    LOW_MEMORY,
    COMPARE,
    PREBUILD,
)
"""All of them in the order of the page, what most people want first; web/templates.js has the same list."""


def api_workflow(name: str) -> Path:
    """The file of a workflow in ComfyUI's API format."""
    return PACK / "workflows" / "api" / f"{name}.json"

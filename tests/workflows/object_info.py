"""The stored object_info: what our nodes, and the core's that the workflows use, take and give.

The entries of our nodes are what a live ComfyUI says now (tests/comfy/test_object_info.py compares them), the
core's are those of ComfyUI 0.3.64, the oldest that the pack supports.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STORED = Path(__file__).with_name("object_info.json")
PREFIX = "I2VTRT_"
KEPT = ("input", "input_order", "output", "output_name", "output_node")
"""Words for people and what only some hosts know are left out."""
CHECKPOINTS = [
    "Wan2.1-I2V-14B-480P-Diffusers",
    "Wan2.2-I2V-A14B-Diffusers",
    "Wan2.2-TI2V-5B-Diffusers",
    "i2v-demo",
    "i2vgen-xl",
    "stable-video-diffusion-img2vid-xt",
]
OFFERED = {
    ("I2VTRT_ModelLoader", "checkpoint"): CHECKPOINTS,
    ("I2VTRT_LoRA", "lora"): ["style.safetensors"],
    ("ImageOnlyCheckpointLoader", "ckpt_name"): ["svd_xt.safetensors"],
    ("LoadImage", "image"): ["lake.png"],
}
"""Choices that depend on the files at hand, with what a user of the shipped workflows has."""


def stored() -> dict[str, dict[str, Any]]:
    """The stored entries by node class."""
    return json.loads(STORED.read_text("utf-8"))


def contract(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """What is stored of a live entry: the same on every host."""
    entry = {key: json.loads(json.dumps(info[key])) for key in KEPT}
    entry["input"] = {
        kind: {key: _settled(name, key, spec) for key, spec in inputs.items()}
        for kind, inputs in entry["input"].items()
        if kind != "hidden"
    }
    entry["input_order"].pop("hidden", None)
    return entry


def inputs_of(info: Mapping[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """Every input's kind and settings, in the node's order; the kind of a choice is COMBO, its choices `options`."""
    found = {}
    for group, names in info["input_order"].items():
        for name in names:
            kind, *settings = info["input"][group][name]
            known = {"optional": group == "optional", **(settings[0] if settings else {})}
            found[name] = ("COMBO", {**known, "options": kind}) if isinstance(kind, list) else (kind, known)
    return found


def _settled(name: str, key: str, spec: list[Any]) -> list[Any]:
    kind, settings = spec[0], dict(spec[1]) if len(spec) > 1 else {}
    settings.pop("tooltip", None)
    offered = OFFERED.get((name, key))
    if offered is not None and isinstance(kind, list):
        kind = offered
    elif offered is not None:
        settings["options"] = offered
    return [kind, settings]

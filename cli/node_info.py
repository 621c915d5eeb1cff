"""ComfyUI's object_info of the nodes: the part that is stored for the tests, and its words as a locale has them.

The stored file has our nodes as `run.py words` read them from a live ComfyUI, and those of the core that the
workflows use, as ComfyUI 0.3.64 has them, the oldest that the pack supports.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .environment import ROOT

STORED = "tests/unit/workflows/object_info.json"
PREFIX = "I2VTRT_"
KEPT = ("input", "input_order", "output", "output_name", "output_node")
"""Keys of an entry that are stored; words for people and keys of some hosts only are left out."""
CHECKPOINTS = [
    "Wan2.1-I2V-14B-480P-Diffusers",
    "Wan2.2-I2V-A14B-Diffusers",
    "Wan2.2-TI2V-5B-Diffusers",
    "dynamicrafter-1024",
    "dynamicrafter-512-interp",
    "i2v-demo",
    "i2vgen-xl",
    "stable-video-diffusion-img2vid-xt",
]
OFFERED = {
    ("I2VTRT_ModelLoader", "checkpoint"): CHECKPOINTS,
    ("I2VTRT_LoRA", "lora"): ["style.safetensors"],
    ("ImageOnlyCheckpointLoader", "ckpt_name"): ["svd_xt.safetensors"],
    ("LoadImage", "image"): ["lake.png"],
    ("UpscaleModelLoader", "model_name"): ["RealESRGAN_x4plus.pth"],
    ("I2VTRT_OnnxPicture", "file"): ["u2net.onnx"],
}
"""Choices that depend on the files at hand, with what a user of the shipped workflows has."""


def stored() -> dict[str, dict[str, Any]]:
    """The stored entries by node class."""
    return json.loads((ROOT / STORED).read_text("utf-8"))


def contract(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """Stored part of a live entry: the same on every host."""
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


def english(name: str, info: Mapping[str, Any]) -> dict[str, Any]:
    """The English locale's entry of a live node; inputs and choices are named as programs write them."""
    entry: dict[str, Any] = {"display_name": info["display_name"], "description": info["description"], "inputs": {}}
    order = {group: names for group, names in info["input_order"].items() if group != "hidden"}
    for key, (kind, settings) in inputs_of({**info, "input_order": order}).items():
        entry["inputs"][key] = {"name": key, "tooltip": settings.get("tooltip", "")}
        if kind == "COMBO" and (name, key) not in OFFERED:
            entry["inputs"][key]["options"] = {option: option for option in settings["options"]}
    tooltips = info["output_tooltips"] or [""] * len(info["output_name"])
    words = zip(info["output_name"], tooltips, strict=True)
    entry["outputs"] = {str(n): {"name": label, "tooltip": tooltip or ""} for n, (label, tooltip) in enumerate(words)}
    return entry


def _settled(name: str, key: str, spec: list[Any]) -> list[Any]:
    kind, settings = spec[0], dict(spec[1]) if len(spec) > 1 else {}
    settings.pop("tooltip", None)
    offered = OFFERED.get((name, key))
    if offered is not None and isinstance(kind, list):
        kind = offered
    elif offered is not None:
        settings["options"] = offered
    return [kind, dict(sorted(settings.items()))]  # hosts differ in the order

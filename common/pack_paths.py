"""Paths of the pack's own files."""

from __future__ import annotations

from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
BUNDLED = PACK / "demo_model"
BUNDLED_NAME = "i2v-demo"
"""Name of the bundled model in workflows, wherever the pack is installed."""
PICTURES = PACK / "workflows" / "pictures"
PICTURE = PICTURES / "lake.png"
INTERPOLATION = BUNDLED / "interpolation" / "interpolation.safetensors"
"""The pack's own network for frames between frames."""

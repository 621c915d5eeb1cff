"""Where what the pack brings along lies."""

from __future__ import annotations

from pathlib import Path

PACK = Path(__file__).resolve().parent.parent
BUNDLED = PACK / "demo_model"
BUNDLED_NAME = "i2v-demo"
"""How workflows name the bundled model, wherever the pack lies."""
PICTURE = PACK / "workflows" / "pictures" / "lake.png"

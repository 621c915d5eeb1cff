"""What the page shows of a node, in ComfyUI's layout of translations, and what a locale of the pack has of it.

ComfyUI reads `locales/LANGUAGE/nodeDefs.json`. The `options` are our own addition to its layout: its page
translates no choices, so that `web/i2v_tensorrt.js` does.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from i2v_tensorrt.cli.node_info import OFFERED, inputs_of

LOCALES = Path(__file__).resolve().parents[2] / "locales"
LANGUAGES = sorted(path.name for path in LOCALES.iterdir())


def node_defs(language: str) -> dict[str, Any]:
    """The translations of the nodes."""
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8"))


def settings(language: str) -> dict[str, Any]:
    """The translations of the pack's settings."""
    return json.loads((LOCALES / language / "settings.json").read_text("utf-8"))


def slots(name: str, info: Mapping[str, Any]) -> set[tuple[str, ...]]:
    """Where a node's translations must have a text, as paths; choices that are files have none."""
    found: set[tuple[str, ...]] = {("display_name",), ("description",)}
    for key, (kind, settings) in inputs_of(info).items():
        found |= {("inputs", key, word) for word in ("name", "tooltip")}
        if kind == "COMBO" and (name, key) not in OFFERED:
            found |= {("inputs", key, "options", option) for option in settings["options"]}
    return found | {("outputs", str(n), word) for n in range(len(info["output"])) for word in ("name", "tooltip")}


def texts(node: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[tuple[str, ...], str]:
    """Every text of a node's translations by its path."""
    found: dict[tuple[str, ...], str] = {}
    for key, value in node.items():
        found |= {(*path, key): value} if isinstance(value, str) else texts(value, (*path, key))
    return found

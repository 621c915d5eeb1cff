"""The colours of a checkpoint's latents, for previews, where they differ from those of the family's published VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...common.errors import CheckpointError
from .checkpoints.diffusers_folder import read_json

FILE_NAME = "latent_rgb.json"
"""In the checkpoint's folder: `rows` of three numbers, one for each channel and one to add."""


def latent_rgb(folder: Path, channels: int) -> list[list[float]] | None:
    """Rows of the map from the sampler's latents to red, green and blue in -1..1; None without the file.

    Raises CheckpointError for a file whose rows do not fit that number of channels.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    rows = read_json(path).get("rows")
    if not isinstance(rows, list) or len(rows) != channels + 1 or not all(map(_is_colour, rows)):
        raise CheckpointError(f"{path}: expected {channels + 1} rows of three numbers, found {str(rows)[:80]}.")
    return rows


def _is_colour(row: Any) -> bool:
    return isinstance(row, list) and len(row) == 3 and all(type(value) in (int, float) for value in row)

"""The sizes of every named dimension for a clip."""

from __future__ import annotations

from ..common.errors import InputError
from ..pipeline.models.base import VideoModel
from ..pipeline.models.latent_space import dims_of
from ..pipeline.request import ClipSize


def clip_sizes(model: VideoModel, width: int, height: int, num_frames: int, *, guided: bool = True) -> dict[str, int]:
    """The sizes of every named dimension for a clip of width x height (pixels).

    Raises InputError, with the nearest, for a size that the family does not make.
    """
    size = ClipSize(width, height, num_frames)
    check_size(model, size)
    return {"batch": 2 if guided else 1, **dims_of(model.latent, size)}


def check_size(model: VideoModel, size: ClipSize) -> None:
    """Raises InputError, with the nearest, for a size that the family does not make."""
    violation = model.latent.violation(model.title, *size)
    if violation is not None:
        raise InputError(violation)

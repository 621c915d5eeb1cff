"""The pack's own interpolation network, or that of ComfyUI's INTERP_MODEL, as a file that engines are built from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy.model_patcher import ModelPatcher

from ...common.errors import InputError
from ...common.pack_paths import INTERPOLATION
from ...pipeline.filters.rife import FORM, open_rife
from .tensor_file import file_of


def network_file(model: Any) -> Path:
    """A safetensors file of RIFE's form: the pack's own without a model, else the model's tensors in a temporary file.

    Raises InputError for a model of another form, such as FILM.
    """
    if model is None:
        return INTERPOLATION
    if not isinstance(model, ModelPatcher):
        raise InputError(f"Expected an INTERP_MODEL from Load Frame Interpolation Model, found {type(model).__name__}.")
    tensors = model.model.state_dict()
    if not any(name.startswith("encode.") for name in tensors):
        kind = type(model.model).__name__
        raise InputError(f"Expected {FORM}; found {kind}, which Run Frame Interpolation Model runs as it is.")
    open_rife(tensors)
    return file_of(model.model)[0]

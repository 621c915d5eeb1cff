"""The pack's own interpolation network, or that of ComfyUI's INTERP_MODEL, as a file that engines are built from."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.model_patcher import ModelPatcher

from ...common.atomic_file import atomic_file
from ...common.errors import InputError
from ...common.pack_paths import INTERPOLATION
from ...pipeline.filters.rife import FORM, open_rife


def network_file(model: Any) -> Path:
    """A safetensors file of RIFE's form: the pack's own without a model, else the model's tensors in a temporary file.

    Raises InputError for a model of another form, such as FILM.
    """
    if model is None:
        return INTERPOLATION
    if not isinstance(model, ModelPatcher):
        raise InputError(f"Expected an INTERP_MODEL from Load Frame Interpolation Model, found {type(model).__name__}.")
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.model.state_dict().items()}
    if not any(name.startswith("encode.") for name in tensors):
        kind = type(model.model).__name__
        raise InputError(f"Expected {FORM}; found {kind}, which Run Frame Interpolation Model runs as it is.")
    open_rife(tensors)
    return _written(tensors)


def _written(tensors: dict[str, torch.Tensor]) -> Path:
    from safetensors.torch import save_file

    sha = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {list(value.shape)} ".encode())
        sha.update(value.flatten().view(torch.uint8).numpy().tobytes())
    path = Path(folder_paths.get_temp_directory()) / "i2v_interpolation" / f"{sha.hexdigest()}.safetensors"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            save_file(tensors, temporary)
    return path

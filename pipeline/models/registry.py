"""Finds the family of a model folder."""

from __future__ import annotations

from pathlib import Path
from weakref import WeakValueDictionary

import torch

from ...engine_builder.errors import CheckpointError
from .base import VideoModel
from .checkpoint import INDEX, pipeline_class
from .i2vgen_xl import I2VGenXL
from .svd import StableVideoDiffusion
from .wan import Wan21, WanA14B, WanTI2V

FAMILIES: tuple[type[VideoModel], ...] = (I2VGenXL, StableVideoDiffusion, Wan21, WanA14B, WanTI2V)
_BY_CLASS = {family.pipeline_class: family for family in FAMILIES}

_MODELS: WeakValueDictionary[str, VideoModel] = WeakValueDictionary()


def load_network(folder: str, component: str, precision: str, rewrites: str = "") -> torch.nn.Module:
    """One component's network, for a process that builds its engine; `rewrites` are names between commas.

    Networks of one folder that are held at the same time share their weights.
    """
    model = _MODELS.get(folder) or open_model(Path(folder))
    _MODELS[folder] = model
    network = model.load(component, precision, tuple(filter(None, rewrites.split(","))))
    object.__setattr__(network, "origin", model)  # for as long as anybody holds the network
    return network


def open_model(folder: Path) -> VideoModel:
    """The model in a folder of the published diffusers layout.

    Raises CheckpointError, naming the file, when the folder is missing, foreign or damaged.
    """
    found = pipeline_class(folder)
    if found not in _BY_CLASS:
        raise CheckpointError(f"{folder / INDEX}: expected {' or '.join(_BY_CLASS)}, found {found}.")
    return _BY_CLASS[found].open(folder)

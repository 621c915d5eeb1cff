"""Finds the family of a model folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from weakref import WeakValueDictionary

import torch

from ...common.errors import CheckpointError
from .base import VideoModel
from .checkpoints.diffusers_folder import INDEX, pipeline_class, read_index
from .dynamicrafter.model import DynamiCrafter, DynamiCrafterInterpolation
from .dynamicrafter.tooncrafter_model import ToonCrafter
from .i2vgen_xl.model import I2VGenXL
from .model_networks import first_blocks
from .svd.model import StableVideoDiffusion
from .wan.model import Wan21
from .wan.sliced import SLICED, sliced
from .wan.wan22 import WanA14B, WanTI2V

FAMILIES: tuple[type[VideoModel], ...] = (
    I2VGenXL,
    StableVideoDiffusion,
    Wan21,
    WanA14B,
    WanTI2V,
    DynamiCrafter,
    DynamiCrafterInterpolation,
    ToonCrafter,
)

_MODELS: WeakValueDictionary[str, VideoModel] = WeakValueDictionary()


def load_network(
    folder: str,
    component: str,
    precision: str,
    rewrites: str = "",
    adapters: str = "[]",
    hollow: str = "",
    blocks: str = "",
) -> torch.nn.Module:
    """One component's network, for a process that builds its engine; `rewrites` are names between commas.

    `adapters` are LoRAs as JSON: paths, strengths and the denoisers that each is for. Networks of one model that are
    held at the same time share their weights. A `hollow` network, whatever the text, has its parameters on `meta`;
    `blocks` is the number of its equal blocks that it has, all if empty.
    """
    name = folder + adapters + hollow + (f" {blocks} of {component}" if blocks else "")
    model = _MODELS.get(name)
    if model is None:
        model = open_configuration(Path(folder)) if hollow else open_model(Path(folder), json.loads(adapters))
        model = first_blocks(model, component, int(blocks)) if blocks else model
    _MODELS[name] = model
    names = tuple(filter(None, rewrites.split(",")))
    network = model.load(component, precision, tuple(name for name in names if name != SLICED))
    if SLICED in names:
        network = sliced(network)
    object.__setattr__(network, "origin", model)  # for as long as a reference to the network exists
    return network


def open_model(
    folder: Path, adapters: Iterable[tuple[str, float, Iterable[str]]] = (), *, needs_weights: bool = True
) -> VideoModel:
    """The model in a folder of the published diffusers layout, with LoRAs (path, strength, denoisers).

    One that needs no weights may be there as configurations alone, to build engines from. Raises CheckpointError,
    naming the file, when the folder is missing, foreign or damaged.
    """
    model = _opened(folder)
    if needs_weights:
        model.checkpoint.require_weights()
    for path, strength, denoisers in adapters:
        model = model.with_adapter(Path(path), strength, tuple(denoisers))
    return model


def open_configuration(folder: Path) -> VideoModel:
    """The model in such a folder as configurations alone, whatever else is there: its networks are hollow.

    Raises CheckpointError as `open_model` does.
    """
    model = _opened(folder)
    return type(model)(model.checkpoint.without_weights())


def _opened(folder: Path) -> VideoModel:
    found, index = pipeline_class(folder), read_index(folder)
    for family in FAMILIES:
        if family.recognises(index):
            return family.open(folder)
    known = dict.fromkeys(family.pipeline_class for family in FAMILIES)
    raise CheckpointError(f"{folder / INDEX}: expected {' or '.join(known)}, found {found}.")

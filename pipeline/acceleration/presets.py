"""Presets by family: the accelerators of each, and what was measured of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from ...common.errors import InputError
from ..models.base import VideoModel
from ..models.model_networks import DEEP
from .quality import quality_line
from .settings import EXACT, Acceleration, ChangeCache, GuidanceGate, Solver

EXACT_NAME = "exact"
PRESET_NAMES = (EXACT_NAME, "near", "fast", "real time")

CHANGED = "Quality: not judged with these settings."


@dataclass(frozen=True)
class Preset:
    """A named acceleration of a family, with the sentence on its measured quality and those on what it lacks."""

    name: str = EXACT_NAME
    acceleration: Acceleration = EXACT
    quality: str = ""
    notes: tuple[str, ...] = ()


_I2VGEN_XL = {
    "near": Acceleration(Solver(20, "unipc"), GuidanceGate(end=0.75)),
    "fast": Acceleration(Solver(12, "unipc"), GuidanceGate(end=0.6)),
    "real time": Acceleration(Solver(8, "unipc"), GuidanceGate(end=0.5)),
}
_SVD = {
    "near": Acceleration(Solver(15), GuidanceGate(end=0.6)),
    "fast": Acceleration(Solver(8), GuidanceGate(end=0.4)),
    "real time": Acceleration(Solver(6), GuidanceGate(end=0.3)),
}
_GENERAL = {
    "near": Acceleration(None, GuidanceGate(end=0.7), ChangeCache(0.03)),
    "fast": Acceleration(None, GuidanceGate(end=0.5), ChangeCache(0.06)),
    "real time": Acceleration(Solver(16), GuidanceGate(end=0.3), ChangeCache(0.1)),
}
ACCELERATIONS: Mapping[str, Mapping[str, Acceleration]] = {"i2vgen_xl": _I2VGEN_XL, "svd": _SVD}
"""By family; the others take the general ones, which need nothing of a family."""


def preset_of(name: str, model: VideoModel) -> Preset:
    """The preset of that name for the model's family; raises InputError for another name."""
    if name not in PRESET_NAMES:
        raise InputError(f"The preset is one of {', '.join(PRESET_NAMES)}, found {name!r:.80}.")
    if name == EXACT_NAME:
        return Preset()
    acceleration = ACCELERATIONS.get(model.family, _GENERAL)[name]
    return resolve(Preset(name, acceleration, quality_line(model.family, name, acceleration)), model)


def changed(preset: Preset, acceleration: Acceleration, model: VideoModel) -> Preset:
    """The preset with other accelerators, which nobody has judged together."""
    if acceleration == preset.acceleration:
        return preset
    return resolve(replace(preset, acceleration=acceleration, quality=CHANGED), model)


def resolve(preset: Preset, model: VideoModel) -> Preset:
    """The preset without what the model's family cannot do, and with a sentence on each of that."""
    acceleration, notes = preset.acceleration, list(preset.notes)
    solver = acceleration.solver
    if solver is not None and solver.scheduler not in (None, *model.schedulers):
        known = ", ".join(model.schedulers)
        notes.append(f"{model.title} is sampled by {known}: the preset keeps the scheduler that is asked for.")
        acceleration = replace(acceleration, solver=replace(solver, scheduler=None, spacing=None))
    if acceleration.deep_interval > 1 and DEEP not in model.components:
        notes.append(f"{model.title} has no deep features to keep: its network is no UNet.")
        acceleration = replace(acceleration, deep_interval=1)
    return replace(preset, acceleration=acceleration, notes=tuple(notes))

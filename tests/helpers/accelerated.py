"""Accelerators to be tried alone and in pairs, and sets of engines under them."""

from __future__ import annotations

import itertools
from dataclasses import is_dataclass, replace
from types import FunctionType
from typing import Any

import torch

from i2v_tensorrt.pipeline.acceleration.magnitudes import Magnitudes, magnitudes_file, write_magnitudes
from i2v_tensorrt.pipeline.acceleration.presets import Preset
from i2v_tensorrt.pipeline.acceleration.settings import (
    Acceleration,
    ChangeCache,
    GuidanceGate,
    MagnitudeCache,
    Solver,
)
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.runtime.acceleration import magnitudes_folder, weights_sha256
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from .stages import GUIDED

STEPS = 8
EXACT = 1e-5
"""Relative to the greatest value."""
PARTS: dict[str, dict[str, Any]] = {
    "solver": {"solver": Solver(6, "dpmpp_2m")},
    "gate": {"guidance": GuidanceGate(end=0.4)},
    "interval": {"guidance": GuidanceGate(0.3, 0.7, reuse=False)},
    "magnitudes": {"step_cache": MagnitudeCache(0.25, 2, 0.2)},
    "change": {"step_cache": ChangeCache(0.5, 0.2)},
    "deep": {"deep_interval": 3},
}
RATIOS = Magnitudes((1.0, 0.95, 0.9, 0.9, 0.95, 0.9, 0.95, 0.9), "ddim", "leading", 9.0, 1)
PAIRS = [
    pair for pair in itertools.combinations(PARTS, 2) if not set(PARTS[pair[0]]) & set(PARTS[pair[1]])
] + [(name,) for name in PARTS]  # fmt: skip


def long(model: VideoModel) -> Denoising:
    """Settings of a clip of `STEPS` guided steps by the family's first scheduler."""
    return replace(GUIDED, sampler=SamplerSettings(STEPS, model.schedulers[0]))


def with_ratios(engines: EngineSet) -> EngineSet:
    """The engines, with measured ratios kept beside them."""
    write_magnitudes(RATIOS, magnitudes_file(magnitudes_folder(engines.store), weights_sha256(engines.model)))
    return engines


def under(engines: EngineSet, *names: str) -> EngineSet:
    """The engines under accelerators of those names; a solver that the family does not know is its own."""
    parts = {key: value for name in names for key, value in PARTS[name].items()}
    if "solver" in parts and parts["solver"].scheduler not in engines.model.schedulers:
        parts["solver"] = replace(parts["solver"], scheduler=None)
    return engines.with_preset(Preset("test", Acceleration(**parts)))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The greatest difference, by the greatest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())


def held_bytes(denoise: Any) -> int:
    """Memory of the tensors that the accelerators around a denoiser hold: all of a storage that is held in part."""
    stack, seen, storages = [denoise], set(), {}
    while stack:
        found = stack.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, torch.Tensor):
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
        elif isinstance(found, FunctionType):
            stack += [cell.cell_contents for cell in found.__closure__ or ()]
        elif is_dataclass(found):
            stack += vars(found).values()
    return sum(storages.values())

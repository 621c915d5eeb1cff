"""A clip's calls under a preset: planned before it begins, with the memory and the ratios that they take."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

import torch

from ..common.digest import digest
from ..common.pack_paths import BUNDLED
from ..common.spec import PRECISIONS, network_precision
from ..engine_builder.store.store import EngineStore
from ..pipeline.acceleration.magnitudes import Magnitudes, magnitudes_file, read_magnitudes
from ..pipeline.acceleration.schedule import Calls, plan_calls
from ..pipeline.acceleration.settings import Acceleration, ChangeCache, MagnitudeCache
from ..pipeline.denoising.guidance import BOTH
from ..pipeline.denoising.schedulers import SamplerSettings, begin, make_scheduler
from ..pipeline.models.base import VideoModel
from ..pipeline.models.latent_space import dims_of
from ..pipeline.models.model_networks import DEEP
from ..pipeline.request import ClipSize

FLOAT_BYTES = 4
SHIPPED = BUNDLED / "magnitudes"
"""Ratios of the bundled model."""


def magnitudes_folder(store: EngineStore) -> Path:
    """The folder of the ratios that this user has measured, beside the engines."""
    return store.root.with_name("i2v_magnitudes")


def weights_sha256(model: VideoModel) -> str:
    """Digest of the weights that the ratios belong to: those of all denoisers."""
    digests = [model.components[name].spec.weights_sha256 for name in model.denoisers]
    return digests[0] if len(digests) == 1 else digest({"weights": digests})


def find_magnitudes(model: VideoModel, store: EngineStore) -> Magnitudes | None:
    """The ratios kept for the model's weights: those that the user has measured, else those of the pack."""
    name = weights_sha256(model)
    found = (read_magnitudes(magnitudes_file(folder, name)) for folder in (magnitudes_folder(store), SHIPPED))
    return next((each for each in found if each is not None), None)


def plan_model_calls(
    acceleration: Acceleration, model: VideoModel, sampler: SamplerSettings, guided: Sequence[str], store: EngineStore
) -> Calls:
    """The calls of a clip of these settings; `guided` names the denoisers whose guidance takes both branches."""
    timesteps = [float(t) for t in begin(make_scheduler(sampler, model.scheduler_config), sampler)]
    experts = [model.select_denoiser(t) for t in timesteps]
    wanted = isinstance(acceleration.step_cache, MagnitudeCache)
    magnitudes = find_magnitudes(model, store) if wanted else None
    return plan_calls(acceleration, timesteps, experts, [name in guided for name in experts], magnitudes)


def cache_bytes(acceleration: Acceleration, model: VideoModel, size: ClipSize, precision: str, *, guided: bool) -> int:
    """Device memory that the accelerators hold between the calls of a clip."""
    latents_bytes = prod(model.latent.shape(*size)) * FLOAT_BYTES
    held = 1 if guided and acceleration.guidance is not None and acceleration.guidance.reuse else 0
    held += {MagnitudeCache: 1, ChangeCache: 3}.get(type(acceleration.step_cache), 0)
    return held * latents_bytes + _deep_bytes(acceleration, model, size, precision, guided)


def _deep_bytes(acceleration: Acceleration, model: VideoModel, size: ClipSize, precision: str, guided: bool) -> int:
    if acceleration.deep_interval == 1 or DEEP not in model.components:
        return 0
    sizes = {"batch": len(BOTH) if guided else 1, **dims_of(model.latent, size)}
    deep = next(tensor for tensor in model.components[DEEP].spec.outputs if tensor.name == "deep")
    item = getattr(torch, PRECISIONS[network_precision(precision)]).itemsize
    return prod(deep.shape_at(sizes)) * item


def planned_line(calls: Calls, asked: SamplerSettings, sampler: SamplerSettings, guided: bool) -> str:
    """Sentence on the calls that a clip will make, of those that were asked for."""
    steps, each = len(calls.timesteps), 2 if guided else 1
    parts = [f"{calls.branches} of {asked.steps * each} calls"]
    if sampler != asked:
        spacing = "" if sampler.spacing is None else f", {sampler.spacing}"
        parts.append(f"{sampler.steps} steps by {sampler.scheduler}{spacing} for {asked.steps}")
    if len(calls.called) < steps:
        parts.append(f"steps {spans(calls.called)} called")
    if guided and len(set(calls.guided)) < steps:
        parts.append(f"guidance anew at steps {spans(calls.guided)}")
    if len(calls.whole) < len(calls.called):
        parts.append(f"the whole network at steps {spans(calls.whole)}")
    if calls.open:
        parts.append("fewer where the latents hardly change")
    return "; ".join(parts) + "."


def spans(steps: Sequence[int]) -> str:
    """Steps from 1, neighbours as a range: `1-4, 6`."""
    found: list[list[int]] = []
    for step in steps:
        if found and found[-1][1] == step - 1:
            found[-1][1] = step
        else:
            found.append([step, step])
    return ", ".join(str(a + 1) if a == b else f"{a + 1}-{b + 1}" for a, b in found) or "none"

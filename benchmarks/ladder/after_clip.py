"""What comes after the clip, by the way's own backend and precision: frames between frames, and larger frames."""

from __future__ import annotations

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from ...common.errors import EngineError
from ...common.pack_paths import INTERPOLATION as INTERPOLATION_WEIGHTS
from ...engine_builder.store.store import EngineStore
from ...pipeline.filters.timing import by_factor
from ...pipeline.filters.upscaling import TILE
from ...runtime.engines.engine_set import Engines
from ...runtime.engines.networks import AnyNetworks
from ...runtime.engines.policy import EnginePolicy
from ...runtime.filters.interpolate import interpolation
from ...runtime.filters.networks import INTERPOLATION, RifeNetworks
from ...runtime.filters.upscale import UPSCALER, UpscalerNetworks, fitting_tile, upscaling
from ..moving_frames import moving
from ..upscale_models import compact
from .job import Job
from .variants import Variant

RUNS = 3
"""Runs after the first one, which builds and loads; the median is kept."""
SCALE = 4


def interpolate(job: Job, variant: Variant) -> dict[str, float]:
    """Seconds for as many frames as the clip has, of its size, at twice the rate, by the pack's own network.

    The frames are not the clip's: random weights may give some in which nothing moves, or everything is a cut.
    """
    engines = _engines(RifeNetworks(INTERPOLATION_WEIGHTS), job, variant)
    frames = list(moving(job.num_frames, job.height, job.width))
    elapsed_s = _seconds(lambda: interpolation(engines, by_factor(2), job.height, job.width, cut=0.0)(frames))
    return {"interpolate_s": _served(engines, INTERPOLATION, elapsed_s)}


def upscale(job: Job, variant: Variant) -> dict[str, float]:
    """Seconds for the same frames at four times the height and width, by a compact network of random weights.

    Raises EngineError where spandrel is missing, which comes with ComfyUI.
    """
    path, frames = _compact(job.work_folder), list(moving(job.num_frames, job.height, job.width))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    model = UpscalerNetworks(path, sha256, f"Compact x{SCALE}", SCALE, fitting_tile(TILE, job.height, job.width))
    engines = _engines(model, job, variant)
    return {"upscale_s": _served(engines, UPSCALER, _seconds(lambda: upscaling(engines)(frames)))}


def _compact(folder: Path) -> Path:
    from safetensors.torch import save_file

    path = folder / "compact.safetensors"
    if not path.is_file():
        save_file(compact(scale=SCALE), path)
    return path


def _engines(model: AnyNetworks, job: Job, variant: Variant) -> Engines[AnyNetworks]:
    policy = EnginePolicy(variant.backend, variant.precision, "exact")
    return Engines(model, EngineStore(job.work_folder / "engines"), policy, job.torch_device)


def _served(engines: Engines[AnyNetworks], component: str, elapsed_s: float) -> float:
    """The seconds; raises EngineError where another backend ran in the row's place."""
    if not engines.describe(component).startswith(engines.policy.backend):
        raise EngineError(" ".join(engines.take_notes()) or f"It ran by {engines.describe(component)}.")
    return elapsed_s


def _seconds(run: Callable[[], Iterator[torch.Tensor]]) -> float:
    """Median seconds until every frame is on the host."""
    found = []
    for _ in range(RUNS + 1):
        started = time.monotonic()
        for _frame in run():
            pass
        found.append(time.monotonic() - started)
    return statistics.median(found[1:])

"""Growth of cost: frames, sizes and steps, each on its own, up to the memory's end."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ...common.atomic_file import write_text
from ...common.errors import I2VError
from ...common.spec import EngineSpec
from ...engine_builder.graph.onnx_export import example_inputs
from ...engine_builder.store.store import EngineStore
from ...pipeline.denoising.schedulers import SamplerSettings
from ...pipeline.models.registry import open_model
from ...pipeline.tensor_cache import ConditioningCache
from ...runtime.clip import encode_clip, sample_clip
from ...runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ...runtime.engines.engine_set import EngineSet
from ...runtime.engines.policy import EnginePolicy
from .document import Point
from .flops import count_tflop
from .job import Job
from .measure import GIB, StageClock, free_memory, sample_ms
from .order import Order
from .variants import Variant

SWEEP_FILE = "sweep.json"
FRAMES, USUAL_FRAMES = (8, 16, 24, 32, 48, 64), 16
SIDES, USUAL_SIDE, SIDE_UNIT = (256, 384, 512, 640, 768, 896, 1024), 512, 64
STEPS, USUAL_STEPS = (10, 20, 30, 40, 50), 50
SAMPLES = 5
AXES = ("frames", "size", "steps")


@dataclass(frozen=True)
class Place:
    """One point of an axis: its label and its job."""

    axis: str
    label: str
    job: Job


def places(job: Job) -> list[Place]:
    """Frames 8 to 64, sizes 256 to 1024 and steps 10 to 50 for a job of the usual size, else in proportion."""
    frames = _scaled(FRAMES, job.num_frames / USUAL_FRAMES, 1)
    sides = _scaled(SIDES, max(job.width, job.height) / USUAL_SIDE, SIDE_UNIT)
    steps = _scaled(STEPS, job.steps / USUAL_STEPS, 1)
    return [
        *(Place("frames", f"{count} frames", replace(job, num_frames=count)) for count in frames),
        *(Place("size", f"{side}x{side}", replace(job, width=side, height=side)) for side in sides),
        *(Place("steps", f"{count} steps", replace(job, steps=count)) for count in steps),
    ]


def run_sweep(order: Order, tell: Callable[[str], None]) -> int:
    """Measures every place, smaller ones first; a place beyond the memory is reported and ends its axis."""
    sweep = Sweep(order.job, order.variant)
    found: list[Point] = []
    for place in places(order.job):
        ended = next((point for point in found if point["axis"] == place.axis and "reason" in point), None)
        found.append(_skipped(place, ended) if ended else sweep.point(place))
        tell(f"{place.label}: {found[-1].get('reason') or _told(found[-1])}")
        write_text(order.rows / SWEEP_FILE, json.dumps(found))
    return 0


def read_points(path: Path) -> list[Point]:
    """The points that a sweep has written so far."""
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return []


class Sweep:
    """The denoiser of one model by one variant, at many sizes."""

    def __init__(self, job: Job, variant: Variant) -> None:
        self._job = job
        self._model = open_model(Path(job.folder))
        self._device = job.torch_device
        # Engines of one build serve every size, for a build a point would take hours.
        policy = EnginePolicy(variant.backend, variant.precision, "range", "build")
        self._backend = variant.backend
        self._network = self._model.load(self._model.denoiser, policy.precision)
        self._engines = EngineSet(self._model, EngineStore(job.work_folder / "engines"), policy, self._device)

    def point(self, place: Place) -> Point:
        """The figures there; or a reason when memory ends before, or an engine does not serve the size."""
        found: Point = {"axis": place.axis, "label": place.label}
        try:
            return found | (self._steps(place.job) if place.axis == "steps" else self._call(place.job))
        except torch.cuda.OutOfMemoryError:
            return found | {"reason": f"Memory ends here: the GPU has {self._memory_gib():.0f} GiB."}
        except I2VError as error:
            return found | {"reason": str(error)}
        finally:
            free_memory(self._device)

    def _call(self, job: Job) -> Point:
        """One denoiser call at the job's size."""
        sizes = job.sizes(self._model)
        component = self._model.components[self._model.denoiser]
        runner = self._engines.runner(self._model.denoiser, sizes)
        tflop = count_tflop(self._network, component.spec, sizes)
        spec = EngineSpec(component.spec, component.spec.limits, self._engines.precision)
        inputs = {name: tensor.to(self._device) for name, tensor in example_inputs(spec, sizes, 0).items()}
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        step_ms = statistics.median(sample_ms(lambda: runner(inputs), SAMPLES, self._device))
        return {
            "frames": job.num_frames,
            "width": job.width,
            "height": job.height,
            "step_ms": round(step_ms, 3),
            "tflop": round(tflop, 6),
            "tflop_per_s": round(1000 * tflop / step_ms, 3),
            "peak_gib": self._peak_gib(),
            "backend": runner.backend,
        }

    def _steps(self, job: Job) -> Point:
        """All steps of a clip."""
        request = job.request()
        plan = plan_clip(self._engines, request.size)
        conditioning = encode_clip(plan, request, ConditioningCache(None), _ignore)
        clock = StageClock(self._device)
        sampler = SamplerSettings(job.steps, self._engines.model.schedulers[0])
        denoising = Denoising(job.seed, job.guidance_scale, sampler)
        sample_clip(plan_sampling(plan, denoising), conditioning, _ignore)
        clock.mark("denoise")
        return {"steps": job.steps, "denoise_s": round(clock.seconds["denoise"], 4), "backend": self._backend}

    def _peak_gib(self) -> float | None:
        if self._device.type != "cuda":
            return None
        return round(torch.cuda.max_memory_allocated(self._device) / GIB, 3)

    def _memory_gib(self) -> float:
        return torch.cuda.get_device_properties(self._device).total_memory / GIB


def _scaled(values: Sequence[int], ratio: float, unit: int) -> list[int]:
    """The values in proportion, as multiples of `unit`, each once."""
    return sorted({max(unit, round(value * ratio / unit) * unit) for value in values})


def _skipped(place: Place, ended: Point) -> Point:
    return {"axis": place.axis, "label": place.label, "reason": f"Left out: {ended['label']} was too much already."}


def _told(point: Point) -> str:
    if "step_ms" not in point:
        return f"{point['denoise_s']:.2f} s"
    memory = "" if point["peak_gib"] is None else f", {point['peak_gib']:.2f} GiB"
    return f"{point['step_ms']:.1f} ms, {point['tflop']:.2f} TFLOP{memory}"


def _ignore(*_: object) -> None:
    """Ignores progress."""

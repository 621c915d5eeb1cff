"""The pack's own loop over a set of engines, eager PyTorch among them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ...common.errors import EngineError
from ...engine_builder.backends.base import OUTSIDE, Report, Runner
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import BACKENDS
from ...engine_builder.build.build_process import BuildProcess
from ...engine_builder.store.store import EngineStore
from ...pipeline.conditioning import Conditioning
from ...pipeline.denoising.guidance import branch_inputs, branches_of
from ...pipeline.denoising.schedulers import SamplerSettings
from ...pipeline.models.registry import open_model
from ...pipeline.tensor_cache import ConditioningCache
from ...runtime.clip import decode_clip, encode_clip, sample_clip
from ...runtime.clip_plan import Denoising, plan_clip, plan_sampling
from ...runtime.engines.engine_set import EngineSet
from ...runtime.engines.policy import EnginePolicy
from .flops import count_tflop
from .job import Job
from .measure import free_memory, synchronize
from .variants import Variant
from .way import Clip, Mark, Way

AFTER_CONDITIONING = ("vae_decoder",)
"""Components that a conditioned clip needs beside the denoiser."""


class EngineWay(Way):
    """Engines under one policy; the first clip's conditioning is kept on disk for the warm start.

    A variant's rewrites apply to the denoiser alone: every other network is compiled as it is used.
    """

    def __init__(self, job: Job, variant: Variant, report: Report, *, cached: bool) -> None:
        super().__init__(job)
        self._variant = variant
        self._model = open_model(Path(job.folder))
        self._sizes = job.sizes(self._model)
        store, policy = (
            EngineStore(job.work_folder / "engines"),
            EnginePolicy(variant.backend, variant.precision, "exact"),
        )
        # Engines for everything but the denoiser, which another set provides, are not built ahead of time.
        ahead = variant.rewrites is None
        self._engines = EngineSet(self._model, store, policy, self.device, report=report, builds_ahead=ahead)
        self._denoisers = self._engines
        if variant.rewrites is not None:
            policy = replace(policy, rewrites=variant.rewrites)
            self._denoisers = EngineSet(self._model, store, policy, self.device, report=report)
        kept = job.work_folder / "conditioning" / variant.name
        if not cached:  # an earlier run's would make a cold start warm
            shutil.rmtree(kept, ignore_errors=True)
        self._cache = ConditioningCache(kept)
        self._conditioning: Conditioning | None = None
        self._network: torch.nn.Module | None = None
        self._notes: list[str] = []

    def build(self) -> float | None:
        if self._variant.backend == EagerBackend.name:
            return None
        self._note_what_is_there()
        started = time.monotonic()
        if self._denoisers is self._engines:
            self._engines.prepare(self._sizes)
        else:
            with BuildProcess() as process:
                self._denoisers.build(self._model.denoiser, self._sizes, process)
        elapsed_s = time.monotonic() - started
        self._denoiser()
        return elapsed_s

    def load(self) -> float | None:
        # The weights' digests are taken, and weights that an engine binds are on the GPU, before the clock starts.
        denoiser, model = self._model.denoiser, self._model
        if OUTSIDE in BACKENDS[self._variant.backend].weights[:1] and model.components:
            rewrites = (
                model.rewrites(denoiser, self._variant.backend)
                if self._variant.rewrites is None
                else self._variant.rewrites
            )
            self._network = model.load(denoiser, self._denoisers.precision, rewrites).to(self.device)
        synchronize(self.device)
        started = time.monotonic()
        self._denoiser()
        synchronize(self.device)
        return None if self._variant.backend == EagerBackend.name else time.monotonic() - started

    def clip(self, steps: int, mark: Mark, *, offload: bool = False) -> Clip:
        job, engines = self.job, self._engines
        cache = self._cache if self._conditioning is None else ConditioningCache(None)
        request = job.request()
        plan = plan_clip(engines, request.size)
        self._conditioning = encode_clip(plan, request, cache, _ignore)
        if offload:
            self._offload()
        mark("encode")
        denoising = Denoising(job.seed, job.guidance_scale, SamplerSettings(steps, self._model.schedulers[0]))
        sampling = plan_sampling(plan_clip(self._denoisers, plan.size), denoising)
        latents = sample_clip(sampling, self._conditioning, _ignore)
        mark("denoise")
        frames = decode_clip(plan, latents, job.chunk, _ignore, self._conditioning.tensors)
        mark("decode")
        return Clip(latents, frames)

    def step(self) -> Callable[[], object]:
        if self._conditioning is None:
            raise EngineError("A clip comes before its core call is repeated.")
        tensors = {name: tensor.to(self.device) for name, tensor in self._conditioning.tensors.items()}
        noise, t = self.job.noise(self._model).to(self.device), torch.tensor(500.0, device=self.device)
        values = self._model.prepare_input(noise, t, tensors)
        network = self._model.components[self._model.denoiser].spec
        inputs = branch_inputs(network.inputs, values, branches_of(self.job.guidance_scale))
        runner = self._denoiser()
        return lambda: runner(inputs)

    def core_tflop(self) -> float:
        """Floating-point operations of one denoiser call, in 10^12."""
        denoiser = self._model.denoiser
        network = self._model.load(denoiser, self._engines.precision)
        return count_tflop(network, self._model.components[denoiser].spec, self._sizes)

    def notes(self) -> list[str]:
        return [*self._notes, *(self._conditioning.notes if self._conditioning else ()), *self._take_notes()]

    def _note_what_is_there(self) -> None:
        """Notes engines of an earlier row, which are not built again: the cold figure then leaves them out."""
        there = [
            name for name in self._model.engine_components
            if any(plan.manifest.spec.profile.fits(self._sizes) for plan in self._set_of(name).catalog.stored(name))
        ]  # fmt: skip
        if there:
            self._notes.append(f"Engines of {', '.join(there)} were there already, so that cold leaves them out.")

    def _denoiser(self) -> Runner:
        """The denoiser's runner; raises EngineError when another backend runs in its place."""
        runner = self._denoisers.runner(self._model.denoiser, self._sizes)
        if runner.backend != self._variant.backend:
            told = " ".join(" ".join(self._take_notes()).split())  # in one line, as a row keeps it
            raise EngineError(told or f"The core runs by {runner.backend}.")
        return runner

    def _set_of(self, component: str) -> EngineSet:
        return self._denoisers if component == self._model.denoiser else self._engines

    def _take_notes(self) -> list[str]:
        return list(dict.fromkeys([*self._denoisers.take_notes(), *self._engines.take_notes()]))

    def _offload(self) -> None:
        needed = (self._model.denoiser, *AFTER_CONDITIONING)
        for name in (name for name in self._model.components if name not in needed):
            self._engines.runner(name, self._sizes).unload()
        free_memory(self.device)


def _ignore(*_: object) -> None:
    """Ignores progress."""

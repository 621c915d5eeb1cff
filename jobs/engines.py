"""Which runner serves a component at a size: found in the store, built, or eager, as the user's policy says."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Generic

import torch

from ..engine_builder.backends.base import Backend, Report, Runner
from ..engine_builder.backends.eager import EagerBackend
from ..engine_builder.backends.registry import AUTO, BACKENDS, choose_backend
from ..engine_builder.backends.tensorrt import TensorRTBackend
from ..engine_builder.build import BuildResult, build_engine, check_memory, quiet
from ..engine_builder.compile import BuildRequest, check_plan
from ..engine_builder.errors import (
    BackendUnavailableError,
    DamagedEngineError,
    EngineError,
    I2VError,
    InputError,
    MissingEngineError,
    StorageError,
)
from ..engine_builder.manifest import Manifest
from ..engine_builder.quantize import Calibration
from ..engine_builder.spec import QUANTIZED, EngineSpec, ShapeProfile, network_precision
from ..engine_builder.store import EngineStore, Plan
from ..engine_builder.worker import BuildProcess
from ..pipeline.models.base import VideoModel
from . import engine_words
from .failed_builds import FAILED, anew
from .networks import AnyNetworks
from .parallel import Task, build_in_parallel
from .policy import EnginePolicy, dims_of
from .presets import ClipSize
from .residency import LoadInPlace, Residency

log = logging.getLogger(__name__)

BUILDERS_ON_CPU = 2
"""Builds at a time on a machine without a GPU: each is one thread of Python."""


@dataclass(frozen=True)
class _Choice:
    """A runner, the shapes that it was chosen for, and a warning to give whenever it is used."""

    shapes: ShapeProfile
    runner: Runner
    warning: str | None = None


class Engines(Generic[AnyNetworks]):
    """The runners of some networks under one policy. Runners are kept, and loaded through the residency."""

    def __init__(
        self,
        model: AnyNetworks,
        store: EngineStore,
        policy: EnginePolicy,
        device: torch.device,
        residency: Residency | None = None,
        report: Report = quiet,
    ) -> None:
        self.model = model
        self.store = store
        self.policy = policy
        self.device = device
        self.precision = policy.precision_on(device)
        self.on_missing = policy.on_missing_on(device)
        self.report = report
        self.residency = residency or LoadInPlace()
        self._choices: dict[str, list[_Choice]] = {}
        self._eager: dict[str, Runner] = {}
        self._last: dict[str, Runner] = {}
        self._untold: dict[str, Runner] = {}  # those that have run since notes were taken
        self._notes: dict[str, None] = {}
        self._built: list[Manifest] = []
        self.failures: dict[str, EngineError] = {}  # of builds
        self._check_rewrites()

    def run(self, component: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs a component once; sizes are read off the inputs."""
        sizes = self.model.components[component].spec.sizes_of(inputs)
        return self.runner(component, sizes)(inputs)

    def runner(self, component: str, sizes: Mapping[str, int]) -> Runner:
        """A loaded runner for the component at these sizes.

        Raises MissingEngineError when there is none and the policy says to stop.
        """
        choices = self._choices.setdefault(component, [])
        choice = next((choice for choice in choices if choice.shapes.fits(sizes)), None)
        if choice is None:
            choice = self._resolve(component, sizes)
            choices.append(choice)
        scratch_bytes = self.model.scratch_bytes(component, sizes, self.precision)
        try:
            made_room = self.residency.hold(choice.runner, scratch_bytes)
        except EngineError as error:
            choices.remove(choice)
            damaged = isinstance(error, DamagedEngineError)
            if self.on_missing == "stop" and not damaged:
                raise
            choice = self._resolve(component, sizes) if damaged else self._fall_back(component, sizes, error)
            choices.append(choice)
            made_room = self.residency.hold(choice.runner, scratch_bytes)
        self.note(made_room)
        self._last[component] = self._untold[component] = choice.runner
        self.note(choice.warning)
        return choice.runner

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Builds every engine that a clip of these sizes lacks, where the policy is to build.

        All in one go, so that the user waits once; nothing for a clip that cannot be made. A component whose build
        fails runs eager, with a note: raises nothing but what the report does.
        """
        if self.on_missing != "build" or not self._can_build():
            return
        tasks = [self._task(name, sizes) for name in self.model.build_order if self._is_due(name, sizes)]
        # A GPU is built for by one at a time: it has the memory for one, and timings must not disturb each other.
        workers = BUILDERS_ON_CPU if self.device.type == "cpu" else 1
        if not tasks:
            return
        self.make_room()
        if not self._is_in_vain(sizes):
            started = time.monotonic()
            build_in_parallel(tasks, workers, self.report)
            self._note_built(started)

    def _is_in_vain(self, sizes: Mapping[str, int]) -> bool:
        """Whether engines for these sizes would serve nobody."""
        return False

    def make_room(self) -> None:
        """Frees the device for builds in other processes; called from the thread that uses it."""
        self.residency.clear()

    def build(
        self,
        component: str,
        sizes: Mapping[str, int],
        process: BuildProcess,
        *,
        force: bool = False,
        arch: str | None = None,
        report: Report | None = None,
        calibration: Calibration | None = None,
    ) -> BuildResult:
        """The component's engine for these sizes by the shape policy, from the store or built now.

        `sizes` may name dimensions that the component does not have; `arch` another GPU than this one. Where the
        component's precision is int8 or fp8 it takes a calibration. Raises EngineError when it cannot be built,
        InputError when the network does not take the sizes.
        """
        request = self.request(component, sizes, arch=arch, calibration=calibration)
        tell = report or self.report
        try:
            result = build_engine(
                request,
                self.store,
                process,
                force=force,
                report=lambda stage, done: tell(f"{component}: {stage}", done),
            )
        except EngineError as error:
            FAILED.remember(request, error)
            raise
        FAILED.forget(request)
        return result

    def request(
        self,
        component: str,
        sizes: Mapping[str, int],
        *,
        arch: str | None = None,
        calibration: Calibration | None = None,
    ) -> BuildRequest:
        """What to build for the component at these sizes by the shape policy, or to look for in the store.

        Takes and raises what `build` does, but for what goes wrong in a build.
        """
        backend = self._backend() if arch is None else BACKENDS[TensorRTBackend.name]
        rewrites, network = self._rewrites(component, backend), self.model.components[component].spec
        spec = self._spec(component, self._profile(component, sizes), backend)
        if spec.precision not in QUANTIZED:
            calibration = None
        elif calibration is None:
            raise MissingEngineError(engine_words.uncalibrated(component, spec.precision))
        else:
            spec = replace(spec, calibration=calibration.name)
        precision = network_precision(spec.precision)
        source = self.model.source(component, precision, rewrites)
        return BuildRequest(
            spec=spec,
            source=source,
            backend=backend,
            device=self.device,
            arch=arch,
            reference=self.model.source(component, precision) if rewrites else None,
            details={} if backend.holds_weights else {"gated_with": network.weights_sha256},
            calibration=calibration,
            device_bytes=source.size_bytes // (2 if calibration else 1) + self._scratch_bytes(component, spec),
        )

    def _scratch_bytes(self, component: str, spec: EngineSpec) -> int:
        """What the largest call of the gate takes of the device beside the weights."""
        precision = "fp16" if spec.calibration else spec.precision
        return max(self.model.scratch_bytes(component, sizes, precision) for sizes in spec.profile.corners)

    def stored(self, component: str) -> list[Plan]:
        """The engines in the store that serve this component here, the narrowest profile first, then the newest.

        Those in int8 and fp8 whatever their scales were taken from.
        """
        backend = self._backend()
        target = backend.target(self.device)
        wanted = self._spec(component, ShapeProfile(), backend)
        plans = [
            plan
            for plan in self.store.plans()
            if plan.manifest.target == target
            and replace(plan.manifest.spec, profile=wanted.profile, calibration=wanted.calibration) == wanted
        ]
        plans.sort(key=lambda plan: plan.manifest.created_at, reverse=True)
        return sorted(plans, key=lambda plan: plan.manifest.spec.profile.width)

    def take_notes(self) -> list[str]:
        """Sentences for the user since the last call, each once; a warning comes again whenever it holds for a run."""
        for runner in self._untold.values():
            self.note(runner.warning)
        notes, self._notes, self._untold = list(self._notes), {}, {}
        return notes

    def expected(self, component: str, sizes: Mapping[str, int]) -> Backend:
        """The backend that serves the component at these sizes unless something fails.

        Raises BackendUnavailableError when the policy's does not serve the device.
        """
        if self._is_eager_fine and self._fitting(component, sizes) is None:
            return BACKENDS[EagerBackend.name]
        return choose_backend(self.policy.backend, self.device)

    def describe(self, component: str) -> str:
        """How the component last ran: backend, precision, device."""
        last = self._last.get(component)
        return f"{last.backend if last else 'not run yet'}, {self.precision} on {self.device}"

    def last_backends(self, components: Iterable[str]) -> dict[str, str]:
        """By which backend those of the components that have run did so last."""
        return {name: self._last[name].backend for name in components if name in self._last}

    def summary(self) -> str:
        """What the policy comes to on this host: the backend, and which components have engines in the store.

        Raises MissingEngineError when the policy is to stop and a component has none.
        """
        here = f"{self.precision} on {self.device}"
        if self.policy.backend == EagerBackend.name:
            return f"eager, {here}"
        try:
            name = self._backend().name
        except BackendUnavailableError as error:
            if self.on_missing == "stop":
                raise
            return f"eager, {here}: {error}"
        missing = [name for name in self.model.engine_components if not self.stored(name)]
        if missing and self.on_missing == "stop":
            raise MissingEngineError(engine_words.missing(missing[0], {}, [], self.store.root))
        if self._is_eager_fine and len(missing) == len(self.model.engine_components):
            return f"eager, {here}\n{engine_words.NOT_BUILT}"
        return f"{name}, {here}\n{engine_words.stock(self.model.engine_components, missing, self.on_missing)}"

    def unload(self) -> None:
        """Gives back the device memory of every runner."""
        for choice in (choice for choices in self._choices.values() for choice in choices):
            choice.runner.unload()

    def _resolve(self, component: str, sizes: Mapping[str, int]) -> _Choice:
        """The runner for these sizes, and for which others it will do without asking again."""
        network = self.model.components[component].spec
        if not network.exportable or self.policy.backend == EagerBackend.name:
            return _Choice(ShapeProfile(), self._eager_runner(component))
        try:
            runner = self._compiled(component, sizes)
        except (EngineError, InputError, StorageError) as error:
            if self.on_missing == "stop":
                raise  # here: a function that raises what it was given is kept by it, with all that its frame names
            return self._fall_back(component, sizes, error)
        return _Choice(runner.spec.profile, runner)

    def _fall_back(self, component: str, sizes: Mapping[str, int], error: I2VError) -> _Choice:
        """The eager runner in place of an engine at these sizes alone, with a warning why unless that is as well."""
        limits = self.model.components[component].spec.limits
        unasked = isinstance(error, BackendUnavailableError) and self.policy.backend == AUTO
        if self._is_eager_fine and (unasked or isinstance(error, MissingEngineError)):
            return _Choice(limits.exact(sizes), self._eager_runner(component))
        warning = f"{component} runs in eager PyTorch, which is slower. {error}"
        log.warning("%s", warning)
        return _Choice(limits.exact(sizes), self._eager_runner(component), warning)

    @property
    def _is_eager_fine(self) -> bool:
        """Whether a missing engine is no loss here, by the policy's own judgement."""
        return self.policy.on_missing == AUTO and self.on_missing == "eager"

    def _backend(self) -> Backend:
        """The backend that the policy names; raises BackendUnavailableError when it does not serve the device."""
        backend = choose_backend(self.policy.backend, self.device)
        if not backend.builds:
            found = [each.availability(self.device) for each in BACKENDS.values() if each.builds]
            reasons = " ".join(each.sentence for each in found if not each.ok)
            raise BackendUnavailableError(f"No engine backend serves {self.device.type} here. {reasons}")
        return backend

    def _compiled(self, component: str, sizes: Mapping[str, int]) -> Runner:
        if self.on_missing == "build" and self._is_due(component, sizes):
            self.make_room()
        started = time.monotonic()
        with BuildProcess() as process:
            plan = self._plan(component, sizes, process, self.report)
            try:
                plan.verify()
            except EngineError as error:
                self.store.quarantine(plan.manifest.key, str(error))
                plan = self._plan(component, sizes, process, self.report)
        self._note_built(started)
        source, backend = self.model.components[component].load, self._backend()
        rewrites, precision = self._rewrites(component, backend), network_precision(plan.manifest.spec.precision)

        def network() -> torch.nn.Module:
            return source(precision, rewrites)

        if plan.manifest.verdict is None:  # built elsewhere for this GPU: nobody has seen it run
            verdict = check_plan(plan, backend, network, self.device, lambda: source(precision))
            plan = self.store.set_verdict(plan, verdict)
        return backend.load(plan, plan.manifest.spec, network, self.device)

    def _plan(self, component: str, sizes: Mapping[str, int], process: BuildProcess, report: Report) -> Plan:
        """The narrowest engine in the store that fits, or one built now if that is the policy."""
        plan = self._fitting(component, sizes)
        if plan is not None:
            return plan
        if component in self.failures:
            raise anew(self.failures[component])
        if self.on_missing != "build":
            raise MissingEngineError(engine_words.missing(component, sizes, self.stored(component), self.store.root))
        try:
            FAILED.check(self.request(component, sizes))
            plan = self.build(component, sizes, process, report=report).plan
        except EngineError as error:
            self.failures[component] = anew(error)
            raise
        self._built.append(plan.manifest)
        return plan

    def _task(self, component: str, sizes: Mapping[str, int]) -> Task:
        def task(process: BuildProcess, report: Report) -> None:
            with suppress(I2VError):  # told when the component is asked for
                self._plan(component, sizes, process, report)

        return task

    def _is_due(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether an engine for these sizes is missing, can be had, and has not failed before."""
        try:
            self._profile(component, sizes)
        except InputError:
            return False
        return not self._has_failed(component, sizes) and self._fitting(component, sizes) is None

    def _has_failed(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether a build of an engine for these sizes has failed before, for this set or for another one."""
        if component in self.failures:
            return True
        with suppress(EngineError):  # told when the component is asked for
            return FAILED.knows(self.request(component, sizes))
        return False

    def _can_build(self) -> bool:
        try:
            return self._backend().builds
        except BackendUnavailableError:
            return False

    def _fitting(self, component: str, sizes: Mapping[str, int]) -> Plan | None:
        """The narrowest engine in the store that serves these sizes, of which some may not be the component's."""
        return next((plan for plan in self.stored(component) if plan.manifest.spec.profile.fits(sizes)), None)

    def _eager_runner(self, component: str) -> Runner:
        """The one eager runner of a component, for every size that no engine serves."""
        if component not in self._eager:
            # The runner is to hold the way to its weights and not this set, which holds the runner.
            source, precision = self.model.components[component].load, self.precision
            spec = EngineSpec(self.model.components[component].spec, ShapeProfile(), precision)
            self._eager[component] = EagerBackend().load(None, spec, lambda: source(precision), self.device)
        return self._eager[component]

    def _profile(self, component: str, sizes: Mapping[str, int]) -> ShapeProfile:
        limits = self.model.components[component].spec.limits
        own = {name: size for name, size in sizes.items() if name in limits.ranges}
        return self.policy.profile(limits, own, self.model.latent)

    def _spec(self, component: str, profile: ShapeProfile, backend: Backend) -> EngineSpec:
        network = backend.network_of(self.model.components[component].spec)
        return EngineSpec(network, profile, self.precision_of(component), self._rewrites(component, backend))

    def precision_of(self, component: str) -> str:
        """The precision of a component's engines."""
        return self.precision

    def _rewrites(self, component: str, backend: Backend) -> tuple[str, ...]:
        if self.policy.rewrites is None:
            return self.model.rewrites(component, backend.name)
        known = self.model.known_rewrites.get(component, ())
        return tuple(name for name in known if name in self.policy.rewrites)

    def _check_rewrites(self) -> None:
        known = {name: None for names in self.model.known_rewrites.values() for name in names}
        unknown = [name for name in self.policy.rewrites or () if name not in known]
        if unknown:
            raise InputError(f"The rewrites are {', '.join(known) or 'none'}, found {', '.join(unknown)}.")

    def note(self, sentence: str | None) -> None:
        """Keeps a sentence, where it is one, for `take_notes`."""
        if sentence is not None:
            self._notes[sentence] = None

    def _note_built(self, started: float) -> None:
        """Tells in one sentence what has been built since that reading of the monotonic clock."""
        if self._built:
            sentence = engine_words.built(self._built, time.monotonic() - started)
            log.info("%s", sentence.replace("\n", " "))
            self._notes[sentence] = None
            self._built = []


class EngineSet(Engines[VideoModel]):
    """A video model's runners."""

    def precision_of(self, component: str) -> str:
        """int8 or fp8 for the cores alone, which take the time: what encodes and decodes would show it."""
        quantized = self.policy.quantized
        return quantized if quantized is not None and component in self.model.cores else self.precision

    def _is_in_vain(self, sizes: Mapping[str, int]) -> bool:
        """Whether there is too little memory to build a core's engine, and too little to run the core without one."""
        due = [core for core in self.model.cores if self._is_due(core, sizes)]
        return any(not self._runs_eager(core, sizes) and self._is_refused(core, sizes) for core in due)

    def _runs_eager(self, core: str, sizes: Mapping[str, int]) -> bool:
        room = self.residency.room_bytes()
        weights_bytes = self.model.source(core, self.precision).size_bytes
        return room is None or weights_bytes + self.model.scratch_bytes(core, sizes, self.precision) <= room

    def _is_refused(self, core: str, sizes: Mapping[str, int]) -> bool:
        try:
            check_memory(self.request(core, sizes))
        except MissingEngineError:
            return False  # one in int8 or fp8, which is not built on the way to a clip
        except EngineError:
            return True
        return False


def clip_sizes(model: VideoModel, width: int, height: int, num_frames: int, *, guided: bool = True) -> dict[str, int]:
    """The sizes of every named dimension for a clip of width x height (pixels).

    Raises InputError, with the nearest, for a size that the family does not make.
    """
    misfit = model.latent.misfit(model.title, width, height, num_frames)
    if misfit is not None:
        raise InputError(misfit)
    return {"batch": 2 if guided else 1, **dims_of(model.latent, ClipSize(width, height, num_frames))}

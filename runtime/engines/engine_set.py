"""Which runner serves a component at a size: found in the store, built, or eager, as the user's policy says."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn, Protocol

import torch

from ...common.errors import (
    BackendUnavailableError,
    DamagedEngineError,
    EngineError,
    I2VError,
    InputError,
    MissingEngineError,
    StorageError,
)
from ...common.shapes import ShapeProfile
from ...common.spec import EngineSpec, network_precision
from ...engine_builder.backends.base import Backend, Report, Runner
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import AUTO, BACKENDS, choose_backend
from ...engine_builder.build.build import BuildResult, build_engine, builds_at_once, check_memory, quiet
from ...engine_builder.build.build_process import BuildProcess
from ...engine_builder.build.compile import BuildRequest, check_plan
from ...engine_builder.build.eta import last_build_s
from ...engine_builder.graph.recorded_calls import Calibration
from ...engine_builder.store.manifest import Manifest
from ...engine_builder.store.store import EngineStore, Plan
from ...pipeline.models.base import VideoModel
from . import messages
from .catalog import EngineCatalog
from .failed_builds import FAILED, anew
from .networks import AnyNetworks
from .parallel_builds import Task, build_in_parallel
from .policy import LATER, EnginePolicy
from .residency import LoadInPlace, Residency

log = logging.getLogger(__name__)

TYPICAL_BUILD_S = 300.0
"""What a build on a GPU is taken to need where none has been seen: somewhat more than a large network's took."""


class _PutOffError(MissingEngineError):
    """A missing engine is built later, if at all."""


class BuildsLater(Protocol):
    """Whoever builds engines when there is nothing to run."""

    generation: int
    """How many of its builds have ended."""

    def is_on(self) -> bool:
        """Whether it builds at all."""
        ...

    def want(self, request: BuildRequest, store: EngineStore) -> None:
        """Has the engine built when there is time."""
        ...

    def waiting(self) -> int:
        """How many prompts run or wait to run."""
        ...


@dataclass(frozen=True)
class _Choice:
    """A runner, the shapes that it was chosen for, and a warning to give whenever it is used."""

    shapes: ShapeProfile
    runner: Runner
    warning: str | None = None
    generation: int | None = None
    """How many later builds had ended by then, where the runner serves until another one has."""


class Engines(EngineCatalog[AnyNetworks]):
    """The runners of some networks under one policy. Runners are kept, and loaded through the residency."""

    def __init__(
        self,
        model: AnyNetworks,
        store: EngineStore,
        policy: EnginePolicy,
        device: torch.device,
        residency: Residency | None = None,
        report: Report = quiet,
        later: BuildsLater | None = None,
    ) -> None:
        super().__init__(model, store, policy, device)
        self.on_missing = policy.on_missing_on(device, builds_later=later is not None)
        self.report = report
        self.later = later
        self.residency = residency or LoadInPlace()
        self._choices: dict[str, list[_Choice]] = {}
        self._eager: dict[str, Runner] = {}
        self._last: dict[str, Runner] = {}
        self._untold: dict[str, Runner] = {}  # those that have run since notes were taken
        self._notes: dict[str, None] = {}
        self._built: list[Manifest] = []
        self._hastened: set[str] = set()  # components whose engines are not to wait
        self.failures: dict[str, EngineError] = {}  # of builds

    def run(self, component: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs a component once; sizes are read off the inputs."""
        sizes = self.model.components[component].spec.sizes_of(inputs)
        return self.runner(component, sizes)(inputs)

    def runner(self, component: str, sizes: Mapping[str, int]) -> Runner:
        """A loaded runner for the component at these sizes.

        Raises MissingEngineError when there is none and the policy says to stop.
        """
        choices = self._choices.setdefault(component, [])
        choices[:] = [choice for choice in choices if choice.generation in (None, self._generation)]
        choice = next((choice for choice in choices if choice.shapes.fits(sizes)), None)
        if choice is None:
            choice = self._resolve(component, sizes)
            choices.append(choice)
        try:
            made_room = self._hold(choice.runner, component, sizes)
        except EngineError as error:
            choices.remove(choice)
            damaged = isinstance(error, DamagedEngineError)
            if self.on_missing == "stop" and not damaged:
                raise
            choice = self._resolve(component, sizes) if damaged else self._fall_back(component, sizes, error)
            choices.append(choice)
            made_room = self._hold(choice.runner, component, sizes)
        self.note(made_room)
        self._last[component] = self._untold[component] = choice.runner
        self.note(choice.warning)
        return choice.runner

    def _hold(self, runner: Runner, component: str, sizes: Mapping[str, int]) -> str | None:
        runner.scratch_bytes = self.model.scratch_bytes(component, sizes, self.precision, runner.backend)
        return self.residency.hold(runner, runner.scratch_bytes)

    @property
    def _generation(self) -> int:
        return 0 if self.later is None else self.later.generation

    def prepare(self, sizes: Mapping[str, int]) -> None:
        """Builds every engine that a clip of these sizes lacks, where the policy is to build.

        All in one go, so that the user waits once; nothing for a clip that cannot be made. A component whose build
        fails runs eager, with a note: raises nothing but what the report does.
        """
        if self.on_missing not in ("build", LATER) or not self._can_build():
            return
        due = [name for name in self.model.build_order if self._is_due(name, sizes)]
        names = [name for name in due if not self._waits(name, sizes)]
        for name in due:
            if name not in names:
                self._want(name, sizes)
        if not names:
            return
        self.make_room()
        if not self._is_in_vain(sizes):
            started = time.monotonic()
            build_in_parallel([self._task(name, sizes) for name in names], self._builders(names, sizes), self.report)
            self._note_built(started)

    def _builders(self, names: Sequence[str], sizes: Mapping[str, int]) -> int:
        """How many builds may run at a time."""
        requests = []
        for name in names:
            with suppress(I2VError):  # told when the component is asked for
                requests.append(self.request(name, sizes))
        return builds_at_once(requests)

    def _waits(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether a missing engine is built later: the component can run without it, and no hurry pays."""
        return self.on_missing == LATER and component not in self._hastened and self._runs_eager(component, sizes)

    def _runs_eager(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether the device has room for the component in eager PyTorch."""
        return True

    def _want(self, component: str, sizes: Mapping[str, int]) -> None:
        """Has an engine built later; one in int8 or fp8, which takes pictures, is not."""
        if self.later is not None:
            with suppress(I2VError):
                self.later.want(self.request(component, sizes), self.store)

    def _put_off(self, component: str, sizes: Mapping[str, int]) -> NoReturn:
        """Has an engine built later, and says so; raises _PutOffError."""
        self._want(component, sizes)
        raise _PutOffError(messages.SWITCHED_OFF if self._fate == "off" else messages.LATER)

    @property
    def waiting_clips(self) -> int:
        """How many clips wait behind this one, as far as anybody knows."""
        return 0 if self.later is None else max(self.later.waiting() - 1, 0)

    def hasten(self, component: str, sizes: Mapping[str, int], saved_s: float) -> bool:
        """Has a missing engine built at its next use after all, if the build takes less than the `saved_s` it saves."""
        last = self._last.get(component)
        if self._fate == "off" or last is None or last.backend != EagerBackend.name:
            return False
        if not self._waits(component, sizes):
            return False
        with suppress(I2VError):
            request = self.request(component, sizes)
            build_s = last_build_s(request.spec, request.backend.name, self.store) or TYPICAL_BUILD_S
            if saved_s > build_s and self._is_due(component, sizes):
                self._hastened.add(component)
                self._choices.pop(component, None)
                return True
        return False

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
        if (self._is_eager_fine or self._waits(component, sizes)) and self._fitting(component, sizes) is None:
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
            raise MissingEngineError(messages.missing(missing[0], {}, [], self.store.root))
        if self._is_eager_fine and len(missing) == len(self.model.engine_components):
            return f"eager, {here}\n{messages.NOT_BUILT}"
        return f"{name}, {here}\n{messages.stock(self.model.engine_components, missing, self._fate)}"

    @property
    def _fate(self) -> str:
        """What becomes of a missing engine."""
        is_off = self.on_missing == LATER and self.later is not None and not self.later.is_on()
        return "off" if is_off else self.on_missing

    def unload(self) -> None:
        """Gives back the device memory of every runner."""
        for choice in (choice for choices in self._choices.values() for choice in choices):
            choice.runner.unload()

    def _resolve(self, component: str, sizes: Mapping[str, int]) -> _Choice:
        """The runner for these sizes, and for which others it will do without asking again."""
        network, generation = self.model.components[component].spec, self._generation
        if not network.exportable or self.policy.backend == EagerBackend.name:
            return _Choice(ShapeProfile(), self._eager_runner(component))
        try:
            runner = self._compiled(component, sizes)
        except _PutOffError as error:
            return _Choice(network.limits.exact(sizes), self._eager_runner(component), str(error), generation)
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

    def _compiled(self, component: str, sizes: Mapping[str, int]) -> Runner:
        builds = self.on_missing == "build" or (self.on_missing == LATER and not self._waits(component, sizes))
        if builds and self._is_due(component, sizes):
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
        if self.on_missing not in ("build", LATER):
            raise MissingEngineError(messages.missing(component, sizes, self.stored(component), self.store.root))
        try:
            FAILED.check(self.request(component, sizes))
            if self._waits(component, sizes):
                self._put_off(component, sizes)
            plan = self.build(component, sizes, process, report=report).plan
        except _PutOffError:
            raise
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

    def _eager_runner(self, component: str) -> Runner:
        """The one eager runner of a component, for every size that no engine serves."""
        if component not in self._eager:
            # The runner is to hold the way to its weights and not this set, which holds the runner.
            source, precision = self.model.components[component].load, self.precision
            spec = EngineSpec(self.model.components[component].spec, ShapeProfile(), precision)
            self._eager[component] = EagerBackend().load(None, spec, lambda: source(precision), self.device)
        return self._eager[component]

    def note(self, sentence: str | None) -> None:
        """Keeps a sentence, where it is one, for `take_notes`."""
        if sentence is not None:
            self._notes[sentence] = None

    def _note_built(self, started: float) -> None:
        """Tells in one sentence what has been built since that reading of the monotonic clock."""
        if self._built:
            sentence = messages.built(self._built, time.monotonic() - started)
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

    def _runs_eager(self, component: str, sizes: Mapping[str, int]) -> bool:
        room, sizes = self.residency.room_bytes(), {**sizes, "chunk": 1}  # a decoder takes as many frames as fit
        weights_bytes = self.model.source(component, self.precision).size_bytes
        return room is None or weights_bytes + self.model.scratch_bytes(component, sizes, self.precision) <= room

    def _is_refused(self, core: str, sizes: Mapping[str, int]) -> bool:
        try:
            check_memory(self.request(core, sizes))
        except MissingEngineError:
            return False  # one in int8 or fp8, which is not built on the way to a clip
        except EngineError:
            return True
        return False

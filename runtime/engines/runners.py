"""Loaded runners: a component's engine where there is one, else eager PyTorch and the reason."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

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
from ...engine_builder.backends.base import Report, Runner
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import AUTO
from ...engine_builder.build.build_process import BuildProcess
from ...engine_builder.build.compile import check_plan
from .builds import EngineBuilds
from .catalog import EngineCatalog
from .memory_manager import MemoryManager
from .missing import MissingEngines, PutOffError
from .notes import Notes

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Choice:
    """A runner, the shapes that it was chosen for, and a warning to give whenever it is used."""

    shapes: ShapeProfile
    runner: Runner
    warning: str | None = None
    generation: int | None = None
    """Number of later builds that had ended at the choice, for a runner that serves until another one ends."""


class EngineRunners:
    """The runners of some networks. They are kept, and loaded through the memory manager."""

    def __init__(
        self,
        catalog: EngineCatalog,
        missing: MissingEngines,
        builds: EngineBuilds,
        memory_manager: MemoryManager,
        notes: Notes,
        report: Report,
    ) -> None:
        self._catalog, self._missing, self._builds = catalog, missing, builds
        self._memory_manager, self._notes, self._report = memory_manager, notes, report
        self._choices: dict[str, list[_Choice]] = {}
        self._eager: dict[str, Runner] = {}
        self._last: dict[str, Runner] = {}
        self._untold: dict[str, Runner] = {}  # runners with a call since their warnings were noted

    def runner(self, component: str, sizes: Mapping[str, int]) -> Runner:
        """A loaded runner for the component at these sizes.

        Raises MissingEngineError when there is none and the policy is to stop.
        """
        choices = self._choices.setdefault(component, [])
        choices[:] = [choice for choice in choices if choice.generation in (None, self._missing.generation)]
        choice = next((choice for choice in choices if choice.shapes.fits(sizes)), None)
        if choice is None:
            choice = self._resolve(component, sizes)
            choices.append(choice)
        try:
            made_room = self._hold(choice.runner, component, sizes)
        except EngineError as error:
            choices.remove(choice)
            damaged = isinstance(error, DamagedEngineError)
            if self._missing.on_missing == "stop" and not damaged:
                raise
            choice = self._resolve(component, sizes) if damaged else self._fall_back(component, sizes, error)
            choices.append(choice)
            made_room = self._hold(choice.runner, component, sizes)
        self._notes.note(made_room)
        self._last[component] = self._untold[component] = choice.runner
        self._notes.note(choice.warning)
        return choice.runner

    def hasten(self, component: str, sizes: Mapping[str, int], saved_s: float) -> bool:
        """As `EngineBuilds.hasten`, for a component that last ran eager; its runner is then chosen anew."""
        last = self._last.get(component)
        if last is None or last.backend != EagerBackend.name or not self._builds.hasten(component, sizes, saved_s):
            return False
        self._choices.pop(component, None)
        return True

    def forget(self, component: str) -> None:
        """Has the component's next runner chosen anew, where no engine serves it so far."""
        choices = self._choices.get(component, [])
        choices[:] = [choice for choice in choices if choice.runner.backend != EagerBackend.name]

    def describe(self, component: str) -> str:
        """Backend, precision and device of the component's last run."""
        last, precision = self._last.get(component), self._catalog.run_precision(component)
        return f"{last.backend if last else 'not run yet'}, {precision} on {self._catalog.device}"

    def last_backends(self, components: Iterable[str]) -> dict[str, str]:
        """Backend of each component's last run, without components that have not run."""
        return {name: self._last[name].backend for name in components if name in self._last}

    def note_warnings(self) -> None:
        """Notes the warnings of runners that have run since the last call."""
        for runner in self._untold.values():
            self._notes.note(runner.warning)
        self._untold = {}

    def unload(self) -> None:
        """Gives back the device memory of every runner."""
        for choice in (choice for choices in self._choices.values() for choice in choices):
            choice.runner.unload()

    def _hold(self, runner: Runner, component: str, sizes: Mapping[str, int]) -> str | None:
        model, precision = self._catalog.model, self._catalog.run_precision(component)
        runner.scratch_bytes = model.scratch_bytes(component, sizes, precision, runner.backend)
        return self._memory_manager.hold(runner, runner.scratch_bytes)

    def _resolve(self, component: str, sizes: Mapping[str, int]) -> _Choice:
        """The runner for these sizes, with the other sizes that it serves without another choice."""
        network, generation = self._catalog.model.components[component].spec, self._missing.generation
        if not network.exportable or self._catalog.policy.backend == EagerBackend.name:
            return _Choice(ShapeProfile(), self._eager_runner(component))
        try:
            runner = self._compiled(component, sizes)
        except PutOffError as error:
            return _Choice(network.limits.exact(sizes), self._eager_runner(component), str(error), generation)
        except (EngineError, InputError, StorageError) as error:
            if self._missing.on_missing == "stop":
                raise  # here: an error keeps the frames that raised it, with all their names
            return self._fall_back(component, sizes, error)
        return _Choice(runner.spec.profile, runner)

    def _fall_back(self, component: str, sizes: Mapping[str, int], error: I2VError) -> _Choice:
        """Eager runner for exactly these sizes. Adds a warning with the reason, except where the policy wants eager."""
        limits = self._catalog.model.components[component].spec.limits
        unasked = isinstance(error, BackendUnavailableError) and self._catalog.policy.backend == AUTO
        if self._missing.is_eager_fine and (unasked or isinstance(error, MissingEngineError)):
            return _Choice(limits.exact(sizes), self._eager_runner(component))
        warning = f"{component} runs in eager PyTorch, which is slower. {error}"
        log.warning("%s", warning)
        return _Choice(limits.exact(sizes), self._eager_runner(component), warning)

    def _compiled(self, component: str, sizes: Mapping[str, int]) -> Runner:
        catalog, builds = self._catalog, self._builds
        if self._missing.builds_now(component, sizes) and builds.is_due(component, sizes):
            builds.make_room()
        started = time.monotonic()
        with BuildProcess() as process:
            plan = builds.plan(component, sizes, process, self._report)
            try:
                plan.verify()
            except EngineError as error:
                catalog.store.quarantine(plan.manifest.key, str(error))
                plan = builds.plan(component, sizes, process, self._report)
        builds.note_built(started)
        source, backend = catalog.model.components[component].load, catalog.backend()
        rewrites, precision = catalog.rewrites(component, backend), network_precision(plan.manifest.spec.precision)

        def network() -> torch.nn.Module:
            return source(precision, rewrites)

        if plan.manifest.verdict is None:  # built elsewhere for this GPU: it has never run
            verdict = check_plan(plan, backend, network, catalog.device, lambda: source(precision))
            plan = catalog.store.set_verdict(plan, verdict, catalog.compared_with(plan.manifest.spec, component))
        spec = plan.manifest.spec  # whose name may be that of another expert
        own = catalog.model.components[component].spec.component
        spec = replace(spec, network=replace(spec.network, component=own))
        return backend.load(plan, spec, network, catalog.device)

    def _eager_runner(self, component: str) -> Runner:
        """The one eager runner of a component, for every size that no engine serves."""
        if component not in self._eager:
            # The runner is to hold the way to its weights and not these runners, which hold it.
            network, precision = self._catalog.model.components[component], self._catalog.run_precision(component)
            source, spec = network.load, EngineSpec(network.spec, ShapeProfile(), precision)
            self._eager[component] = EagerBackend().load(None, spec, lambda: source(precision), self._catalog.device)
        return self._eager[component]

"""Engines that a clip lacks, built on its way, several at a time."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from ...common.errors import EngineError, I2VError, InputError, MissingEngineError
from ...engine_builder.backends.base import Report
from ...engine_builder.build.build import BuildResult, build_engine, builds_at_once, check_memory
from ...engine_builder.build.build_process import BuildProcess
from ...engine_builder.build.eta import last_build_s
from ...engine_builder.graph.recorded_calls import Calibration
from ...engine_builder.store.manifest import Manifest
from ...engine_builder.store.store import Plan
from . import messages
from .catalog import EngineCatalog
from .failed_builds import FAILED, anew
from .memory_manager import MemoryManager
from .missing import MissingEngines, PutOffError
from .notes import Notes
from .parallel_builds import Task, build_in_parallel
from .policy import LATER

log = logging.getLogger(__name__)

TYPICAL_BUILD_S = 300.0
"""Assumed seconds of a build on a GPU without an earlier one: somewhat more than a large network's build took."""


class EngineBuilds:
    """Builds engines that a catalog lacks, where its policy is to build."""

    def __init__(
        self,
        catalog: EngineCatalog,
        missing: MissingEngines,
        memory_manager: MemoryManager,
        notes: Notes,
        report: Report,
    ) -> None:
        self._catalog, self._missing, self._memory_manager = catalog, missing, memory_manager
        self._notes, self._report = notes, report
        self._built: list[Manifest] = []
        self.failures: dict[str, EngineError] = {}

    def prepare(self, sizes: Mapping[str, int], components: Sequence[str] | None = None) -> None:
        """Builds every engine that a clip of these sizes lacks, where the policy is to build.

        `components` are those that the clip calls, the longest build first; None for the model's.

        All are built in one go, so that the user waits once; none if the clip cannot be made. A component whose build
        fails runs eager, with a note: raises only the report's own errors.
        """
        if self._missing.on_missing not in ("build", LATER) or not self._catalog.can_build():
            return
        wanted = self._catalog.model.build_order if components is None else components
        due = [name for name in wanted if self.is_due(name, sizes)]
        names = [name for name in due if not self._missing.waits(name, sizes)]
        for name in due:
            if name not in names:
                self._missing.want(name, sizes)
        if not names:
            return
        self.make_room()
        if not self._is_in_vain(sizes):
            started = time.monotonic()
            build_in_parallel([self._task(name, sizes) for name in names], self._builders(names, sizes), self._report)
            self.note_built(started)

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
        component's precision is int8 or fp8 it takes a calibration; where its products are rounded as it multiplies,
        that is for the comparison alone and may be left out. Raises EngineError when it cannot be built,
        InputError when the network does not take the sizes.
        """
        request = self._catalog.request(component, sizes, arch=arch, calibration=calibration)
        tell = report or self._report
        try:
            result = build_engine(
                request,
                self._catalog.store,
                process,
                force=force,
                report=lambda stage, done: tell(f"{component}: {stage}", done),
            )
        except EngineError as error:
            FAILED.remember(request, error)
            raise
        FAILED.forget(request)
        return result

    def plan(self, component: str, sizes: Mapping[str, int], process: BuildProcess, report: Report) -> Plan:
        """The narrowest engine in the store that fits, or one built now if that is the policy."""
        catalog, missing = self._catalog, self._missing
        plan = catalog.fitting(component, sizes)
        if plan is not None:
            return plan
        if component in self.failures:
            raise anew(self.failures[component])
        if missing.on_missing not in ("build", LATER):
            raise MissingEngineError(messages.missing(component, sizes, catalog.stored(component), catalog.store.root))
        try:
            FAILED.check(catalog.request(component, sizes))
            if missing.waits(component, sizes):
                missing.put_off(component, sizes)
            result = self.build(component, sizes, process, report=report)
        except PutOffError:
            raise
        except EngineError as error:
            self.failures[component] = anew(error)
            raise
        if not result.reused:  # by another process, or for another expert
            self._built.append(result.plan.manifest)
        return result.plan

    def is_due(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether an engine for these sizes is missing, can be built, and has not failed before."""
        try:
            self._catalog.profile(component, sizes)
        except InputError:
            return False
        return not self._has_failed(component, sizes) and self._catalog.fitting(component, sizes) is None

    def hasten(self, component: str, sizes: Mapping[str, int], saved_s: float) -> bool:
        """Has a missing engine built at its next use after all, if the build takes less than the `saved_s` it saves."""
        if self._missing.fate == "off" or not self._missing.waits(component, sizes):
            return False
        with suppress(I2VError):
            request = self._catalog.request(component, sizes)
            build_s = last_build_s(request.spec, request.backend.name, self._catalog.store) or TYPICAL_BUILD_S
            if saved_s > build_s and self.is_due(component, sizes):
                self._missing.hasten(component)
                return True
        return False

    def make_room(self) -> None:
        """Frees the device for builds in other processes; called from the thread that uses it."""
        self._memory_manager.clear()

    def note_built(self, started: float) -> None:
        """Notes in one sentence the engines built since `started`, a reading of the monotonic clock."""
        if self._built:
            sentence = messages.built(self._built, time.monotonic() - started)
            log.info("%s", sentence.replace("\n", " "))
            self._notes.note(sentence)
            self._built = []

    def _task(self, component: str, sizes: Mapping[str, int]) -> Task:
        def task(process: BuildProcess, report: Report) -> None:
            with suppress(I2VError):  # reported when the component is run
                self.plan(component, sizes, process, report)

        return task

    def _builders(self, names: Sequence[str], sizes: Mapping[str, int]) -> int:
        """Number of builds that may run at a time."""
        requests = []
        for name in names:
            with suppress(I2VError):  # reported when the component is run
                requests.append(self._catalog.request(name, sizes))
        return builds_at_once(requests)

    def _has_failed(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether a build of an engine for these sizes has failed before, for this set or for another one."""
        if component in self.failures:
            return True
        with suppress(EngineError):  # reported when the component is run
            return FAILED.knows(self._catalog.request(component, sizes))
        return False

    def _is_in_vain(self, sizes: Mapping[str, int]) -> bool:
        """Whether memory is too small to build a denoiser's engine, and to run that denoiser without one."""
        due = [denoiser for denoiser in self._catalog.model.denoisers if self.is_due(denoiser, sizes)]
        return any(
            not self._missing.runs_eager(denoiser, sizes) and self._is_refused(denoiser, sizes) for denoiser in due
        )

    def _is_refused(self, denoiser: str, sizes: Mapping[str, int]) -> bool:
        try:
            check_memory(self._catalog.request(denoiser, sizes))
        except MissingEngineError:
            return False  # one in int8 or fp8, which is not built on the way to a clip
        except EngineError:
            return True
        return False

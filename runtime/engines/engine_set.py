"""The runners of a model under one policy: found in the store, built, or eager. The face that clips and nodes see."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol

import torch

from ...engine_builder.backends.base import Backend, Report, Runner
from ...engine_builder.build.build import quiet
from ...engine_builder.store.store import EngineStore
from ...pipeline.acceleration.presets import Preset
from ...pipeline.models.base import VideoModel
from .builds import EngineBuilds
from .catalog import EngineCatalog
from .memory_manager import LoadInPlace, MemoryManager
from .missing import BuildsLater, MissingEngines
from .networks import AnyNetworks
from .notes import Notes
from .policy import EnginePolicy
from .runners import EngineRunners

Wrap = Callable[[str, Runner], Runner]
"""Function from a component's runner to the runner that is called in its place."""


class Engines(Generic[AnyNetworks]):
    """The runners of some networks under one policy: `catalog`, `missing`, `builds` and `runners` do the work.

    `build` is that of `builds`. `wrap` replaces each runner for callers. Without `builds_ahead` each engine is built
    at its first use.
    """

    def __init__(
        self,
        model: AnyNetworks,
        store: EngineStore,
        policy: EnginePolicy,
        device: torch.device,
        memory_manager: MemoryManager | None = None,
        report: Report = quiet,
        later: BuildsLater | None = None,
        *,
        wrap: Wrap | None = None,
        builds_ahead: bool = True,
    ) -> None:
        self.model, self.store, self.policy, self.device = model, store, policy, device
        self.memory_manager, self.report, self.later = memory_manager or LoadInPlace(), report, later
        self.notes = Notes()
        self.catalog = EngineCatalog(model, store, policy, device)
        self.missing = MissingEngines(self.catalog, self.memory_manager, later)
        self.builds = EngineBuilds(self.catalog, self.missing, self.memory_manager, self.notes, report)
        self.build = self.builds.build
        self.runners = EngineRunners(self.catalog, self.missing, self.builds, self.memory_manager, self.notes, report)
        self.precision, self.on_missing = self.catalog.precision, self.missing.on_missing
        self._wrap, self._builds_ahead = wrap, builds_ahead

    def run(self, component: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs a component once; sizes are read off the inputs."""
        sizes = self.model.components[component].spec.sizes_of(inputs)
        return self.runner(component, sizes)(inputs)

    def runner(self, component: str, sizes: Mapping[str, int]) -> Runner:
        """A loaded runner for the component at these sizes; see `EngineRunners.runner`."""
        runner = self.runners.runner(component, sizes)
        return runner if self._wrap is None else self._wrap(component, runner)

    def prepare(self, sizes: Mapping[str, int], components: Sequence[str] | None = None) -> None:
        """Builds the engines that a clip of these sizes lacks, if they are built ahead; see `EngineBuilds.prepare`."""
        if self._builds_ahead:
            self.builds.prepare(sizes, components)

    @property
    def waiting_clips(self) -> int:
        """Number of clips that wait behind this one; 0 where it is unknown."""
        return self.missing.waiting_clips

    def hasten(self, component: str, sizes: Mapping[str, int], saved_s: float) -> bool:
        """Has a missing engine built at its next use after all, if the build takes less than the `saved_s` it saves."""
        return self.runners.hasten(component, sizes, saved_s)

    def expected(self, component: str, sizes: Mapping[str, int]) -> Backend:
        """The backend that serves the component at these sizes unless something fails.

        Raises BackendUnavailableError when the policy's does not serve the device.
        """
        return self.missing.expected(component, sizes)

    def summary(self) -> str:
        """Effect of the policy on this host; see `MissingEngines.summary`."""
        return self.missing.summary()

    def describe(self, component: str) -> str:
        """Backend, precision and device of the component's last run."""
        return self.runners.describe(component)

    def note(self, sentence: str | None) -> None:
        """Keeps a sentence, where it is one, for `take_notes`."""
        self.notes.note(sentence)

    def take_notes(self) -> list[str]:
        """Sentences for the user since the last call, each once; a warning comes again whenever it holds for a run."""
        self.runners.note_warnings()
        return self.notes.take()

    def unload(self) -> None:
        """Gives back the device memory of every runner."""
        self.runners.unload()


class DeviceGroup(Protocol):
    """Several devices that share the tokens of a model's clips."""

    def serves(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether each device has something to do in a call of the component at these sizes."""
        ...

    def runner(self, component: str, sizes: Mapping[str, int]) -> Runner:
        """The loaded runner of a denoiser over all devices; raises EngineError and OutOfMemoryError."""
        ...

    def describe(self, component: str) -> str | None:
        """Backend, precision and devices of the component's last run; None where it has not run."""
        ...

    def take_notes(self) -> list[str]:
        """Sentences for the user since the last call."""
        ...

    def unload(self) -> None:
        """Gives back the memory of all devices."""
        ...


class EngineSet(Engines[VideoModel]):
    """A video model's runners, and the preset by which its clips are sampled."""

    preset: Preset = Preset()
    second: EngineSet | None = None
    """The same model's runners on a second device, which take one of two guidance branches; None for one device."""
    group: DeviceGroup | None = None
    """The devices that share the tokens of a clip without guidance; None where one makes it."""

    def with_preset(self, preset: Preset) -> EngineSet:
        """The same runners under another preset."""
        made = copy.copy(self)
        made.preset = preset
        return made

    def beside(self, second: EngineSet | None, group: DeviceGroup | None = None) -> EngineSet:
        """The same runners with those of a second device, or alone.

        `second` is of a model that shares no network with this one's; see `model_networks.apart`.
        """
        made = copy.copy(self)
        made.second, made.group = second, group
        return made

    def describe(self, component: str) -> str:
        by_all = None if self.group is None else self.group.describe(component)
        if by_all is not None:
            return by_all
        shared = self.second is not None and self.second.runners.last_backends((component,))
        return super().describe(component) + (f" and {self.second.device}" if shared and self.second else "")

    @property
    def devices_line(self) -> str | None:
        """Line on the second device; None for one device."""
        if self.second is None:
            return None
        tokens = "" if self.group is None else "; without guidance their tokens"
        return f"guidance branches on {self.device} and {self.second.device}{tokens}"

    def take_notes(self) -> list[str]:
        found = dict.fromkeys(super().take_notes())
        for others in (self.second, self.group):
            found.update(dict.fromkeys([] if others is None else others.take_notes()))
        return list(found)

    def hasten(self, component: str, sizes: Mapping[str, int], saved_s: float) -> bool:
        is_due = super().hasten(component, sizes, saved_s)
        if is_due and self.second is not None:
            self.second.runners.forget(component)
        return is_due

    def unload(self) -> None:
        super().unload()
        for others in (self.second, self.group):
            if others is not None:
                others.unload()

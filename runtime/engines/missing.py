"""Treatment of a missing engine: built now, built later, or replaced by eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import NoReturn, Protocol

from ...common.errors import BackendUnavailableError, I2VError, MissingEngineError
from ...engine_builder.backends.base import Backend
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import AUTO, BACKENDS, choose_backend
from ...engine_builder.build.compile import BuildRequest
from ...engine_builder.store.store import EngineStore
from . import messages
from .catalog import EngineCatalog
from .memory_manager import MemoryManager
from .policy import LATER


class PutOffError(MissingEngineError):
    """A missing engine is built later, if at all."""


class BuildsLater(Protocol):
    """Builder of engines while there is nothing to run."""

    generation: int
    """Number of its builds that have ended."""

    def is_on(self) -> bool:
        """Whether the builder builds at all."""
        ...

    def want(self, request: BuildRequest, store: EngineStore) -> None:
        """Queues the engine to be built when there is time."""
        ...

    def waiting(self) -> int:
        """Number of prompts that run or wait."""
        ...


class MissingEngines:
    """The policy's answer to missing engines, on this device and with the builder for later."""

    def __init__(self, catalog: EngineCatalog, memory_manager: MemoryManager, later: BuildsLater | None) -> None:
        self.on_missing = catalog.policy.on_missing_on(catalog.device, builds_later=later is not None)
        self._catalog, self._memory_manager, self._later = catalog, memory_manager, later
        self._hastened: set[str] = set()  # components whose engines are not to wait

    @property
    def is_eager_fine(self) -> bool:
        """Whether a missing engine is no loss here, by the policy's own judgement."""
        return self._catalog.policy.on_missing == AUTO and self.on_missing == "eager"

    @property
    def fate(self) -> str:
        """Fate of a missing engine: a miss policy, or `off` where building later is switched off."""
        is_off = self.on_missing == LATER and self._later is not None and not self._later.is_on()
        return "off" if is_off else self.on_missing

    @property
    def generation(self) -> int:
        """Number of later builds that have ended."""
        return 0 if self._later is None else self._later.generation

    @property
    def waiting_clips(self) -> int:
        """Number of clips that wait behind this one; 0 where it is unknown."""
        return 0 if self._later is None else max(self._later.waiting() - 1, 0)

    def builds_now(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether a missing engine is built at its first use."""
        return self.on_missing == "build" or (self.on_missing == LATER and not self.waits(component, sizes))

    def waits(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether a missing engine is built later: the component can run without it, and no hurry pays."""
        return self.on_missing == LATER and component not in self._hastened and self.runs_eager(component, sizes)

    def runs_eager(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether the device has room for the component in eager PyTorch; a lent network runs there already."""
        catalog = self._catalog
        if not catalog.model.denoisers:
            return True
        room, sizes = self._memory_manager.room_bytes(), {**sizes, "chunk": 1}  # a decoder takes as many frames as fit
        weights_bytes = catalog.model.source(component, catalog.precision).size_bytes
        return room is None or weights_bytes + catalog.model.scratch_bytes(component, sizes, catalog.precision) <= room

    def want(self, component: str, sizes: Mapping[str, int]) -> None:
        """Has an engine built later; one in int8 or fp8, which takes pictures, is not."""
        if self._later is not None:
            with suppress(I2VError):
                self._later.want(self._catalog.request(component, sizes), self._catalog.store)

    def put_off(self, component: str, sizes: Mapping[str, int]) -> NoReturn:
        """Queues an engine to be built later; raises PutOffError with a sentence for the user."""
        self.want(component, sizes)
        raise PutOffError(messages.SWITCHED_OFF if self.fate == "off" else messages.LATER)

    def hasten(self, component: str) -> None:
        """Marks the component's engines to be built at their next use, although they could wait."""
        self._hastened.add(component)

    def expected(self, component: str, sizes: Mapping[str, int]) -> Backend:
        """The backend that serves the component at these sizes unless something fails.

        Raises BackendUnavailableError when the policy's does not serve the device.
        """
        catalog = self._catalog
        if (self.is_eager_fine or self.waits(component, sizes)) and catalog.fitting(component, sizes) is None:
            return BACKENDS[EagerBackend.name]
        return choose_backend(catalog.policy.backend, catalog.device)

    def summary(self) -> str:
        """Effect of the policy on this host: the backend, and the number of components with engines in the store.

        Raises MissingEngineError when the policy is to stop and a component has none.
        """
        catalog = self._catalog
        here, components = f"{catalog.precision} on {catalog.device}", catalog.model.engine_components
        if catalog.policy.backend == EagerBackend.name:
            return f"eager, {here}"
        try:
            name = catalog.backend().name
        except BackendUnavailableError as error:
            if self.on_missing == "stop":
                raise
            return f"eager, {here}: {error}"
        missing = [name for name in components if not catalog.stored(name)]
        if missing and self.on_missing == "stop":
            raise MissingEngineError(messages.missing(missing[0], {}, [], catalog.store.root))
        if self.is_eager_fine and len(missing) == len(components):
            return f"eager, {here}\n{messages.NOT_BUILT}"
        return f"{name}, {here}\n{messages.stock(components, missing, self.fate)}"

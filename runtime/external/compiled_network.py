"""Runs the network of a ComfyUI MODEL through engines, chosen per call by input sizes and the user's policy.

The network itself is not changed. An engine is used only after its outputs passed the comparison with the network's,
for the same inputs and weights. Where no engine can be used the network itself runs, and a sentence gives the reason.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, wraps
from threading import RLock
from typing import Any, ClassVar, Protocol

import torch

from ...common.digest import digest
from ...common.errors import BackendUnavailableError, EngineError, I2VError, InputError
from ...common.network_source import NetworkSource
from ...common.out_of_memory import is_out_of_memory
from ...common.spec import NetworkSpec
from ...engine_builder.backends.base import Report, Runner
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import choose_backend
from ...engine_builder.build.parity import measure, passes
from ...engine_builder.store.store import EngineStore
from ...pipeline.models.model_networks import Component
from ..engines.engine_set import Engines
from ..engines.memory_manager import MemoryManager
from ..engines.missing import BuildsLater
from ..engines.networks import OtherNetworks
from ..engines.policy import EnginePolicy
from .network_call import Call, input_specs, limits_of, output_specs, outputs_of, result_of

NETWORK = "network"
MAX_KINDS = 8
"""Kinds of calls that are distinguished; a network with more has arguments that change at every call."""

OUT_OF_MEMORY = "The network runs as it is: memory ran out for its engine."

Original = Callable[[], Any]
"""The call as it is without us."""
_State = tuple[object, object]
"""A call's sizes, and its network's weights."""


class _ExhaustedError(I2VError):
    """Memory ran out for an engine, and not for the network itself."""


@contextmanager
def _exhaustion() -> Iterator[None]:
    """Turns an out-of-memory error in an engine's work into _ExhaustedError; other errors pass through."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise _ExhaustedError(OUT_OF_MEMORY) from error
        raise


class NetworkOwner(Protocol):
    """Owner of the network, who may change its weights between calls."""

    @cached_property
    def identity(self) -> NetworkSpec:
        """The network without its tensors; `weights_sha256` is empty."""
        ...

    @property
    def weights(self) -> object:
        """Equal as long as the weights are the same."""
        ...

    def weights_sha256(self) -> str:
        """A digest of the weights as they are now."""
        ...

    def called(self, tree: str) -> torch.nn.Module:
        """The network over its own weights, called as in `tree`."""
        ...

    def source(self, tree: str, device: torch.device, *, weights: bool) -> NetworkSource:
        """Source from which another process loads the network, with its weights or with others of their kind."""
        ...


class _OneNetwork(OtherNetworks):
    """The network, called in one way, as `Engines` asks for networks."""

    engine_components: ClassVar[tuple[str, ...]] = (NETWORK,)
    build_order: ClassVar[tuple[str, ...]] = (NETWORK,)

    def __init__(self, owner: NetworkOwner, spec: NetworkSpec, tree: str, device: torch.device) -> None:
        self.spec, self.device = spec, device
        self._owner, self._tree = owner, tree

    @cached_property
    def components(self) -> Mapping[str, Component]:
        owner, tree = self._owner, self._tree  # and not `self`, which would outlive its last user

        def load(precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
            return owner.called(tree)

        return {NETWORK: Component(self.spec, load)}

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> NetworkSource:
        return self._owner.source(self._tree, self.device, weights=bool(self.spec.weights_sha256))

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        return 0  # the network's owner has made room for the network itself


@dataclass
class _Kind:
    """One kind of calls: its engines, and the sizes and weights at which each has been compared."""

    engines: Engines[_OneNetwork]
    compared: dict[tuple[Runner, object, object], str | None] = field(default_factory=dict)
    """None for an engine that passed, else the reason why it is not used."""
    exhausted: set[_State] = field(default_factory=set)
    """Sizes and weights at which memory ran out for an engine in this run."""


@dataclass
class Tally:
    """Numbers of calls since the last look, by the network that ran them."""

    engine: int = 0
    compared: int = 0
    """Calls that the original network ran, with an engine beside it to be compared."""
    original: int = 0

    @property
    def calls(self) -> int:
        """Number of all calls."""
        return self.engine + self.compared + self.original


_Run = Callable[["CompiledNetwork", Call, Original], Any]


def _by_turns(method: _Run) -> _Run:
    """Has threads call a network's method one at a time."""

    @wraps(method)
    def locked(self: CompiledNetwork, call: Call, original: Original) -> Any:
        with self.lock:
            return method(self, call, original)

    return locked


class CompiledNetwork:
    """Another owner's network, run by engines where there are any for a call."""

    def __init__(
        self,
        owner: NetworkOwner,
        store: EngineStore,
        policy: EnginePolicy,
        memory_manager: MemoryManager,
        report: Report,
        later: BuildsLater | None = None,
    ) -> None:
        self.tally = Tally()
        self._owner, self._store, self._policy = owner, store, policy
        self._memory_manager, self._report, self._later = memory_manager, report, later
        self.lock = RLock()
        self._kinds: dict[tuple[object, ...], _Kind] = {}
        self._notes: dict[str, None] = {}

    @_by_turns
    def run(self, call: Call, original: Original) -> Any:
        """Result of `original()`, by an engine if one is there or may be built.

        Calls from several threads take turns: runners and their memory serve one call at a time. Raises
        MissingEngineError, or the error of a build, when the policy is to stop.
        """
        original = cache(original)  # it runs once a call, however often its result is used
        state = (tuple(call.tensors[name].shape for name in call.tensors), self._owner.weights)
        try:
            kind = self._kinds.get(self._key(call))
            if kind is None:
                call = call.kept()  # it is compared with, and the original may write into its inputs
                kind = self._new_kind(call, outputs_of(original()))
        except I2VError as error:
            return self._as_it_is(original, str(error))
        if state not in kind.exhausted:
            try:
                return self._with_engine(kind, call, state, original)
            except _ExhaustedError:
                kind.exhausted.add(state)
            # After the failed call's frames are gone, with the memory that they held.
            kind.engines.unload()
            freed = self._memory_manager.free_memory(sys.maxsize, encoders=True)
            self._notes.update(dict.fromkeys(filter(None, [freed, OUT_OF_MEMORY])))
        return self._as_it_is(original)

    def failure(self, call: Call) -> str | None:
        """Reason why no engine could be built for calls of this kind; None where none was tried or one is there."""
        kind = self._kinds.get(self._key(call))
        error = None if kind is None else kind.engines.builds.failures.get(NETWORK)
        return None if error is None or kind is None or kind.engines.policy.shapes != "exact" else str(error)

    def take_notes(self) -> list[str]:
        """Sentences for the user since the last call, each once; engines that lacked memory are tried again."""
        for kind in self._kinds.values():
            self._notes.update(dict.fromkeys(kind.engines.take_notes()))
            kind.exhausted.clear()
        notes, self._notes = list(self._notes), {}
        return notes

    def unload(self) -> None:
        """Releases the weights, and all memory of the engines."""
        for kind in self._kinds.values():
            kind.engines.unload()

    def backends(self) -> Iterator[str]:
        """The backends whose engines are in use."""
        yield from dict.fromkeys(runner.backend for kind in self._kinds.values() for runner, *_ in kind.compared)

    def _with_engine(self, kind: _Kind, call: Call, state: _State, original: Original) -> Any:
        """The result, by an engine where there is one; raises _ExhaustedError where memory runs out for it."""
        with _exhaustion():
            runner = self._runner(kind, call)
        if runner is None:
            return self._as_it_is(original)
        proof = (runner, *state)
        if proof not in kind.compared:
            call = call.kept()
            kind.compared[proof] = self._difference(runner, call, outputs_of(original()))
            self.tally.compared += 1
            return original()
        why = kind.compared[proof]
        if why is None:
            try:
                with _exhaustion():
                    found = result_of(runner(call.tensors))
            except EngineError as error:
                kind.compared[proof] = why = str(error)
            else:
                self.tally.engine += 1
                return found
        return self._as_it_is(original, why)

    def _as_it_is(self, original: Original, why: str | None = None) -> Any:
        if why is not None:
            self._notes[why] = None
        result = original()
        self.tally.original += 1
        return result

    def _difference(self, runner: Runner, call: Call, expected: Mapping[str, torch.Tensor]) -> str | None:
        """Reason why the engine may not replace the network: a failure, or another result. None when it may."""
        try:
            with _exhaustion():
                found = runner(call.tensors)
            sizes = runner.spec.network.sizes_of(call.tensors)
            for name, wanted in expected.items():
                if found[name].shape != wanted.shape:
                    raise EngineError(f"Expected a result of {list(wanted.shape)}, found {list(found[name].shape)}.")
                passes(measure(wanted, found[name], sizes), runner.spec.precision)
        except EngineError as error:
            why = f"The network runs as it is: {error}"
            self._notes[why] = None
            return why
        return None

    def _key(self, call: Call) -> tuple[object, ...]:
        """Key of everything that engines depend on but the sizes in which they may differ; the weights come last."""
        limits = tuple(limits_of(call.latents).ranges.items())
        return (call.tree, input_specs(call), limits, call.latents.device, self._weights_sha256(call))

    def _new_kind(self, call: Call, outputs: Mapping[str, torch.Tensor]) -> _Kind:
        """Adds a kind of calls; raises InputError for latents in a precision without engines, or for too many kinds."""
        key = self._key(call)
        self._drop_others(key)
        if len(self._kinds) >= MAX_KINDS:
            raise InputError(f"The network is called in more than {MAX_KINDS} ways, of which each needs an engine.")
        identity = self._owner.identity
        spec = replace(
            identity,
            config_sha256=digest([identity.config_sha256, call.tree]),
            weights_sha256=self._weights_sha256(call),
            inputs=input_specs(call),
            outputs=output_specs(outputs, call.latents),
            limits=limits_of(call.latents),
        )
        networks = _OneNetwork(self._owner, spec, call.tree, call.latents.device)
        kind = _Kind(self._engines(networks, replace(self._policy, precision=call.precision)))
        self._kinds[key] = kind
        return kind

    def _drop_others(self, key: tuple[object, ...]) -> None:
        """Drops the engines that hold other weights: the store has them, should those weights come back."""
        for other in [each for each in self._kinds if each[-1] != key[-1]]:
            self._kinds.pop(other).engines.unload()

    def _runner(self, kind: _Kind, call: Call) -> Runner | None:
        """An engine that is loaded over the weights as they are; None where the network itself is to run."""
        sizes = kind.engines.model.spec.sizes_of(call.tensors)
        runner = kind.engines.runner(NETWORK, sizes)
        if runner.backend != EagerBackend.name:
            return runner
        failure, policy = kind.engines.builds.failures.get(NETWORK), kind.engines.policy
        if failure is None or policy.shapes == "exact":
            return None
        # Not every network can be compiled for a range of sizes.
        kind.engines.take_notes()
        self._notes[f"Each size has its own engine. {failure}"] = None
        kind.engines = self._engines(kind.engines.model, replace(policy, shapes="exact"))
        return self._runner(kind, call)

    def _engines(self, networks: _OneNetwork, policy: EnginePolicy) -> Engines[_OneNetwork]:
        # Weights that are written for a build are gone once the run is over.
        later = None if networks.spec.weights_sha256 else self._later
        return Engines(networks, self._store, policy, networks.device, self._memory_manager, self._report, later)

    def _weights_sha256(self, call: Call) -> str:
        """The digest that the engines of the backend depend on, empty for one whose engines hold no weights."""
        try:
            backend = choose_backend(self._policy.backend, call.latents.device)
        except BackendUnavailableError:
            return ""
        return self._owner.weights_sha256() if self._policy.holds_weights(backend) else ""

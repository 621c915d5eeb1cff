"""The contract of a backend (network -> plan -> runner) and of a runner (named tensors in and out)."""

from __future__ import annotations

import gc
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...common.device import current_device
from ...common.errors import EngineError, InputError
from ...common.spec import EngineSpec, NetworkSpec, Target

if TYPE_CHECKING:
    import torch

    from ..graph.recorded_calls import Calibration
    from ..store.store import Plan

LoadNetwork = Callable[[], "torch.nn.Module"]
"""Function that returns the network in the engine's precision; called only by backends that need the weights."""

OUTSIDE, INSIDE = "outside", "inside"
"""Places of an engine's weights: in its network, of which it is given the addresses, or in itself."""

Report = Callable[[str, float], None]
"""Callback with the stage's name and the fraction done, 0 to 1; may raise to cancel."""


@dataclass(frozen=True)
class Availability:
    """Whether a backend can serve a device; `reason` is a sentence, `install` a command line that helps."""

    ok: bool
    reason: str
    install: str = ""

    @property
    def sentence(self) -> str:
        """The reason, and the line to install where one helps."""
        return f"{self.reason} To install it: {self.install}" if self.install else self.reason


class Runner(ABC):
    """A network that can be called; holds device memory only between `load` and `unload`."""

    backend: ClassVar[str]
    """The name of the backend that makes these runners."""
    streams: ClassVar[bool] = False
    """Whether the runner does with less device memory than its weights take, and brings them in as it needs them."""
    warning: str | None = None
    """A sentence for the user while the runner works, but not as it should."""
    scratch_bytes: int = 0
    """Expected device memory of the next call in bytes, beside the weights; 0 where it is unknown."""
    room_bytes: int | None = None
    """Device memory that the weights of a runner that `streams` may take when it is loaded next; None for all."""

    def __init__(self, spec: EngineSpec, device: torch.device) -> None:
        self.spec = spec
        self.device = device

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """True while the runner holds its weights on its device."""

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Device memory that the loaded runner holds, without scratch space."""

    @abstractmethod
    def load(self) -> None:
        """Takes device memory and makes the runner callable; does nothing when it is loaded."""

    @abstractmethod
    def unload(self) -> None:
        """Gives all device memory back; the runner can be loaded again."""

    @abstractmethod
    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs on inputs of the declared dtypes on the runner's device."""

    def _goes_without_graph(self, error: Exception) -> None:
        """Warns the user that no CUDA graph could be captured: none is ever needed, the direct call has worked."""
        self.warning = f"{self.spec.network.component} runs without a CUDA graph, which is slower: {in_a_line(error)}."

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs the network.

        `inputs` hold the tensors of `spec.network.inputs` by name, of any floating dtype and on any
        device; they are converted. The outputs are on the runner's device, in the declared dtypes.
        Raises InputError for tensors that do not fit the network or the profile.
        """
        violations = self.spec.profile.violations(self.spec.network.sizes_of(inputs))
        if violations:
            raise InputError(f"The {self.backend} engine of {self.spec.network.component}: {'; '.join(violations)}.")
        if not self.is_loaded:
            raise EngineError(f"The {self.backend} engine of {self.spec.network.component} is not loaded.")
        with current_device(self.device):
            return self._run(self._converted(inputs))

    def warm_up(self, sizes: Mapping[str, int]) -> None:
        """Runs once on zeros of the given sizes, so that the first real call is not the slow one."""
        import torch

        self(
            {t.name: torch.zeros(t.shape_at(sizes), dtype=_dtype(t.dtype_at("fp32"))) for t in self.spec.network.inputs}
        )

    def _converted(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {
            tensor.name: inputs[tensor.name].to(self.device, _dtype(tensor.dtype_at(self.spec.precision)))
            for tensor in self.spec.network.inputs
        }


class WrappedRunner(Runner):
    """A runner in another one's place, which a subclass calls in `_run`: loaded and unloaded with it."""

    def __init__(self, runner: Runner) -> None:
        super().__init__(runner.spec, runner.device)
        self._runner = runner

    @property
    def is_loaded(self) -> bool:
        return self._runner.is_loaded

    @property
    def memory_bytes(self) -> int:
        return self._runner.memory_bytes

    def load(self) -> None:
        self._runner.load()

    def unload(self) -> None:
        self._runner.unload()


@dataclass(frozen=True)
class Part:
    """One of several parts of a network that are compiled side by side; the first has the index 0."""

    index: int = 0
    count: int = 1


WHOLE = Part()


@dataclass(frozen=True)
class BuildTarget:
    """Target of a build."""

    device: torch.device
    arch: str | None = None
    """Another GPU architecture to build for than that of `device`, such as `sm_89`."""
    calibration: Calibration | None = None
    """Recorded inputs that a quantized engine's scales are taken from."""
    part: Part = WHOLE
    """Part of the network to build, into the folder that all parts share."""


class Backend(ABC):
    """One way to compile and run networks."""

    name: ClassVar[str]
    builds: ClassVar[bool] = True
    """False for a backend whose runner needs no plan on disk."""
    weights: ClassVar[tuple[str, ...]] = (INSIDE,)
    """Places that the weights of this backend's engines can have, the usual one first."""
    builds_hollow: ClassVar[bool] = False
    """Whether engines with weights outside are built without any: from a network on the device `meta`."""
    has_fp32_fallback: ClassVar[bool] = True
    """Whether engines in fp16 compute in fp32 where the weights at the build make numbers beyond fp16."""
    builds_beside_others: ClassVar[bool] = False
    """Whether builds on one GPU leave each other's results alone; timing kernels against each other does not."""
    builds_in_parts: ClassVar[bool] = False
    """Whether several processes can compile one network, each a part of it."""
    builds_blocks: ClassVar[bool] = False
    """Whether the engine of a network that repeats a block is built from a few of its blocks."""

    def for_target(self, target: BuildTarget) -> Backend:
        """This backend, building for that target; raises EngineError where it cannot."""
        if target.arch is not None:
            raise EngineError(f"The backend {self.name} builds for this machine only, found {target.arch!r}.")
        if target.calibration is not None:
            raise EngineError(f"int8 and fp8 are for TensorRT, found the backend {self.name}.")
        if target.part != WHOLE:
            raise EngineError(
                f"The backend {self.name} builds a network in one piece, found {target.part.count} parts."
            )
        return self

    def is_automatic(self, device: torch.device) -> bool:
        """Whether `auto` may choose this backend for the device."""
        return True

    def place_weights(self, wanted: str | None, size_bytes: int, device: torch.device) -> str:
        """Place of the weights of an engine of so many bytes of weights; without a wish the backend's choice.

        Raises InputError for a place that this backend does not know.
        """
        if wanted is None:
            return self.weights[0]
        if wanted not in self.weights:
            raise InputError(f"Engines of {self.name} have their weights {self.weights[0]}, found {wanted}.")
        return wanted

    @staticmethod
    def network_of(network: NetworkSpec, place: str) -> NetworkSpec:
        """The spec that enters the engine key: without the weights' digest where the engine holds no weights."""
        return network if place == INSIDE else replace(network, weights_sha256="")

    @abstractmethod
    def availability(self, device: torch.device) -> Availability:
        """Availability of this backend: its library is here and serves the device, or the reason why not."""

    @abstractmethod
    def target(self, device: torch.device) -> Target:
        """Target that an engine built here and now would be bound to."""

    def begin(self) -> None:  # noqa: B027  # most have nothing to start
        """Starts work that a build waits for and that needs no network; called before the network is loaded."""

    @abstractmethod
    def build(self, network: torch.nn.Module, spec: EngineSpec, folder: Path, report: Report) -> dict[str, str]:
        """Compiles the network into files in `folder`; returns details worth keeping in the manifest.

        Raises EngineError when the network cannot be compiled.
        """

    @abstractmethod
    def load(self, plan: Plan | None, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> Runner:
        """A runner for the plan (None for a backend that builds none), not yet loaded."""


@contextmanager
def no_collection() -> Iterator[None]:
    """Keeps Python from collecting garbage: compilers spend a sixth of their time on it, and a capture forbids it."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _dtype(name: str) -> torch.dtype:
    import torch

    return getattr(torch, name)


def import_fault(packages: Iterable[str]) -> str | None:
    """The first package that cannot be imported and why, as the end of a sentence; None where all can.

    A package raises anything where others in its environment are of versions that it does not know.
    """
    for package in packages:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            return f"the package {error.name or package}, which is missing."
        except Exception as error:
            return f"the package {package}, which cannot be imported: {in_a_line(error)}."
    return None


def in_a_line(error: Exception) -> str:
    """A library's error message in one line, as the end of a sentence without its full stop."""
    return " ".join(str(error).split())[:300].rstrip(".:") or type(error).__name__

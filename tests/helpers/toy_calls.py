"""A toy network that somebody else owns, called with and without us, and a backend that borrows its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import torch

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, NetworkSpec
from i2v_tensorrt.engine_builder.backends.base import OUTSIDE, Runner
from i2v_tensorrt.engine_builder.store.store import Plan
from i2v_tensorrt.runtime.external.compiled_network import CompiledNetwork
from i2v_tensorrt.runtime.external.network_call import Call, read_call

from .toys import ToyBackend, ToyNetwork, ToySource

SIZE = (1, 4, 3, 8, 8)


class Borrowing(ToyBackend):
    """A toy whose engines take the weights of the network that they are loaded with."""

    weights: ClassVar[tuple[str, ...]] = (OUTSIDE,)
    has_fp32_fallback: ClassVar[bool] = False

    def load(self, plan: Plan | None, spec: EngineSpec, network: Any, device: torch.device) -> Runner:
        return BorrowingRunner(spec, device, network, self)


class BorrowingRunner(Runner):
    """The network itself, at one more remove."""

    backend: ClassVar[str] = "toy"

    def __init__(self, spec: EngineSpec, device: torch.device, network: Any, toy: Borrowing) -> None:
        super().__init__(spec, device)
        self._source, self._toy = network, toy
        self.network: Any = None

    @property
    def is_loaded(self) -> bool:
        return self.network is not None

    @property
    def memory_bytes(self) -> int:
        return 0

    def load(self) -> None:
        self.network = self._source()

    def unload(self) -> None:
        self.network = None

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"prediction": self._toy.fault(self.network(**inputs))}


@dataclass
class Owner:
    """Has a toy network, and counts how often it is asked for a digest of its weights."""

    network: ToyNetwork = field(default_factory=ToyNetwork)
    weights: object = "as loaded"
    digests: int = 0

    @cached_property
    def identity(self) -> NetworkSpec:
        return NetworkSpec("toys", "ToyNetwork", "c" * 64, "", (), (), ShapeProfile())

    def weights_sha256(self) -> str:
        self.digests += 1
        return str(self.weights)

    def called(self, tree: str) -> torch.nn.Module:
        return self.network

    def source(self, tree: str, device: torch.device, *, weights: bool) -> Any:
        return ToySource()


class Original:
    """The call without us; counts how often it is made."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self.calls = 0

    def of(self, call: Call) -> Callable[[], torch.Tensor]:
        def original() -> torch.Tensor:
            self.calls += 1
            return self._owner.network(call.tensors["sample"], call.tensors["strength"])

        return original


@dataclass
class Scene:
    owner: Owner
    toy: ToyBackend
    network: CompiledNetwork

    def run(self, count: int = 1, size: tuple[int, ...] = SIZE, **more: Any) -> int:
        """Calls the network, each time with other values; how often it ran itself. The result must be its own."""
        original = Original(self.owner)
        for seed in range(count):
            generator = torch.Generator().manual_seed(seed)
            tensors = {"sample": torch.randn(size, generator=generator), "strength": torch.ones(1, 4)}
            call = read_call({**tensors, **more})
            found = self.network.run(call, original.of(call))
            assert torch.equal(found, self.owner.network(**tensors))
        return original.calls

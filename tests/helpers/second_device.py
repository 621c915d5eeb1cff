"""A pretended second device: the CPU again, with networks of its own, whose calls are counted and can fail."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from i2v_tensorrt.engine_builder.backends.base import Runner, WrappedRunner
from i2v_tensorrt.pipeline.models.model_networks import apart
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace

Fail = Callable[[int], None]
"""Called with the number of each call of the second device; raises where that call is to fail."""


class SmallRoom(LoadInPlace):
    """The memory of a device with so many bytes, and what loading a runner raises."""

    def __init__(self, size_bytes: int | None = None, error: Exception | None = None) -> None:
        self._size_bytes, self._error = size_bytes, error

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        if self._error is not None:
            raise self._error
        return super().hold(runner, scratch_bytes)

    def room_bytes(self) -> int | None:
        return self._size_bytes


class Calls(WrappedRunner):
    """A runner's calls, told before they are made."""

    def __init__(self, runner: Runner, tell: Callable[[Mapping[str, torch.Tensor]], None]) -> None:
        super().__init__(runner)
        self._tell = tell

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self._tell(inputs)
        return self._runner(inputs)


class SecondDevice:
    """The second device of an EngineSet: `engines` is that set beside it, `batches` the batch of each call of a core.

    A call's number is how many calls the second device had before.
    """

    def __init__(self, engines: EngineSet, memory_manager: Any = None, fail: Fail = lambda number: None) -> None:
        self.batches: list[int] = []

        def tell(inputs: Mapping[str, torch.Tensor]) -> None:
            fail(len(self.batches))
            self.batches.append(len(inputs["sample"]))

        self.second = EngineSet(
            apart(engines.model),
            engines.store,
            engines.policy,
            engines.device,
            memory_manager,
            wrap=lambda component, runner: Calls(runner, tell),
        )
        self.engines = engines.beside(self.second)

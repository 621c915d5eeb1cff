"""Calls of a clip's denoisers: all guidance branches in a batch on one device, each branch on a device of its own, or
the tokens of a call by several devices.

Both devices are launched from one thread, for a launch does not wait for the GPU. PyTorch orders a copy between two
GPUs after the work that either has queued on its current stream, so the copies here need no events of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import torch

from ...common.device import free_cached
from ...common.errors import EngineError
from ...common.out_of_memory import is_out_of_memory
from ...engine_builder.backends.base import Runner, in_a_line
from ...pipeline.denoising.guidance import BOTH, CONDITIONAL, UNCONDITIONAL, Branches, branch_inputs
from ..engines.engine_set import DeviceGroup, EngineSet

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class BranchCall:
    """A call of a component at `x` and the timestep `t` for some guidance branches.

    `sizes` are those of every named dimension, whose batch is that of the branches. `more` are inputs [branches, ...]
    beside those that the model prepares.
    """

    component: str
    x: torch.Tensor
    t: torch.Tensor
    branches: Branches
    sizes: Mapping[str, int]
    more: Tensors


class BranchCalls(Protocol):
    """Runs calls of a clip's denoisers."""

    def run(self, call: BranchCall) -> Tensors:
        """The outputs [branches, ...] on the first device."""
        ...

    def forget(self) -> None:
        """Has the next call ask for its runner anew."""


class BatchedBranches:
    """Calls on one device, in which all branches are a batch."""

    def __init__(self, engines: EngineSet, tensors: Tensors) -> None:
        self._engines = engines
        self.tensors = {name: tensor.to(engines.device) for name, tensor in tensors.items()}
        self._held: tuple[str, int] | None = None
        self._runner: Runner

    def hold(self, component: str, branches: Branches, sizes: Mapping[str, int]) -> Runner:
        """The loaded runner for as many branches, asked for anew whenever another one has run."""
        if self._held != (component, len(branches)):
            self._held = None
            self._runner = self._engines.runner(component, {**sizes, "batch": len(branches)})
            self._held = component, len(branches)
        return self._runner

    def run(self, call: BranchCall) -> Tensors:
        model, device = self._engines.model, self._engines.device
        # On a GPU without waiting for earlier queued work. Other devices might read it too early.
        there = call.t.to(device, non_blocking=device.type == "cuda")
        values = model.prepare_input(call.x.to(device), there, self.tensors)
        inputs = branch_inputs(model.components[call.component].spec.inputs, values, call.branches)
        return self.hold(call.component, call.branches, call.sizes)({**inputs, **call.more})

    def forget(self) -> None:
        self._held = None


class SplitBranches:
    """Calls of both branches, one on each of two devices; a branch alone is called on the first.

    Where the second device fails, the clip goes on with the first one, and a note says why.
    """

    def __init__(self, engines: EngineSet, second: EngineSet, first: BatchedBranches, tensors: Tensors) -> None:
        self._engines, self._other, self._first = engines, second, first
        self._second: BatchedBranches | None = None
        self._failure: str | None = None
        self._tensors = tensors

    def run(self, call: BranchCall) -> Tensors:
        if call.branches != BOTH or self._failure is not None:
            return self._first.run(call)
        self._first.hold(call.component, CONDITIONAL, call.sizes)  # first: an engine that is built for it serves both
        there = self._on_second(_half(call, UNCONDITIONAL, slice(0, 1)))
        if there is None:
            return self._give_up(call)
        here = self._first.run(_half(call, CONDITIONAL, slice(1, None)))
        try:
            brought = {name: there[name].to(here[name]) for name in here}
        except RuntimeError as error:  # of the second device's work, which has ended only now
            self._failure = self._reason(error)
        else:
            return {name: torch.cat([brought[name], here[name]]) for name in here}
        return self._give_up(call)

    def forget(self) -> None:
        for calls in (self._first, self._second):
            if calls is not None:
                calls.forget()

    def _on_second(self, call: BranchCall) -> Tensors | None:
        """The outputs of a call that is launched on the second device; None where that fails."""
        device = self._other.device
        try:
            if self._second is None:
                self._second = BatchedBranches(self._other, self._tensors)
            return self._second.run(replace(call, more={name: value.to(device) for name, value in call.more.items()}))
        except (RuntimeError, MemoryError, EngineError) as error:
            self._failure = self._reason(error)
        return None

    def _reason(self, error: Exception) -> str:
        """Reason of the second device's failure as a sentence; raises the error where it says nothing of the device."""
        device = self._other.device
        if is_out_of_memory(error):
            return f"Memory ran out on the second device, {device}: the clip goes on with one device."
        if isinstance(error, EngineError):
            return f"The second device, {device}, failed: the clip goes on with one device. {in_a_line(error)}."
        raise error

    def _give_up(self, call: BranchCall) -> Tensors:
        """Frees the second device and makes the call on the first one."""
        self._second = None
        self._other.unload()
        free_cached(self._other.device)
        self._engines.note(self._failure)
        return self._first.run(call)


def _half(call: BranchCall, branches: Branches, places: slice) -> BranchCall:
    """The part of a call for some of its branches, which are at these places of the batch."""
    return replace(call, branches=branches, more={name: value[places] for name, value in call.more.items()})


class GroupCalls:
    """Calls by a group of devices; where it fails, the clip goes on with one device, and a note says why."""

    def __init__(self, engines: EngineSet, group: DeviceGroup, first: BatchedBranches) -> None:
        self._engines, self._group, self._first = engines, group, first
        self._failed = False
        self._held: str | None = None

    def run(self, call: BranchCall) -> Tensors:
        sizes = {**call.sizes, "batch": len(call.branches)}
        if self._failed or call.more or not self._group.serves(call.component, sizes):
            return self._first.run(call)
        try:
            return self._by_all(replace(call, sizes=sizes))
        except (EngineError, RuntimeError, MemoryError) as error:
            reason = self._reason(error)
        self._failed = True
        self._group.unload()
        self._engines.note(reason)
        return self._first.run(call)

    def forget(self) -> None:
        self._first.forget()
        self._held = None

    def _by_all(self, call: BranchCall) -> Tensors:
        if self._held != call.component:
            self._runner = self._group.runner(call.component, call.sizes)
            self._held = call.component
        model, device = self._engines.model, self._engines.device
        values = model.prepare_input(call.x, call.t.to(device), self._first.tensors)
        return self._runner(branch_inputs(model.components[call.component].spec.inputs, values, call.branches))

    def _reason(self, error: Exception) -> str:
        """Reason of the failure as a sentence; raises the error where it says nothing of the devices."""
        if is_out_of_memory(error) or isinstance(error, EngineError):
            return f"{error} The clip goes on with one device."
        raise error


def branch_calls(engines: EngineSet, tensors: Tensors, *, guided: bool) -> tuple[BatchedBranches, BranchCalls]:
    """The calls of a clip with these tensors on the first device, and the calls of all branches.

    Devices beside the first take a branch each of a guided clip, and tokens of another one. Each way holds all weights
    on both devices, so the other way gives them back.
    """
    first, second, group = BatchedBranches(engines, tensors), engines.second, engines.group
    if second is not None and guided:
        if group is not None:
            group.unload()
        return first, SplitBranches(engines, second, first, tensors)
    if group is not None and not guided:
        if second is not None:
            second.unload()
        return first, GroupCalls(engines, group, first)
    return first, first

"""Runs Inductor's engines over a network's own weights; replays a step as a CUDA graph."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any, ClassVar

from ....common.errors import EngineError
from ....common.spec import EngineSpec, Scope
from ..base import LoadNetwork, Runner
from ..cuda_graph import Replay, can_capture, is_launch_bound
from ..host_weights import LazyNetwork, to_device
from ..network_tensors import Binding, bindings, held_bytes, tensors_of
from .package import lay_out, open_parts, run_package

if TYPE_CHECKING:
    import torch

    from ...store.store import Plan

LAYOUT = "layout"
"""The entry of the package's metadata with the weights' layout: shape, strides and dtype by name."""
MAX_GRAPHS = 4
"""Sizes of which one runner keeps a CUDA graph; further ones are called directly."""
WEIGHED_CALL = 2
"""Number of the call at a size that is timed to learn whether a graph pays: the call before warms up."""


class InductorRunner(LazyNetwork, Runner):
    """An engine bound to a network's weights in place: a change to the weights changes the engine's results."""

    backend: ClassVar[str] = "inductor"

    def __init__(self, plan: Plan, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> None:
        super().__init__(spec, device)
        self._plan = plan
        self._source = network
        self._package: Any = None
        self._bound: tuple[Binding, ...] = ()
        self._calls: Counter[tuple[Any, ...]] = Counter()
        """By the inputs' shapes."""
        self._replays: dict[tuple[Any, ...], Replay] = {}
        self._pool: Any = None
        # A network that runs once a clip gains nothing from a graph, which would keep scratch memory.
        self._has_steps = any(tensor.scope is Scope.STEP for tensor in spec.network.inputs)

    @property
    def is_loaded(self) -> bool:
        """Read off the weights: another runner may have moved them, or their owner put others in their place."""
        return self._package is not None and all(binding.holds for binding in self._bound)

    @property
    def memory_bytes(self) -> int:
        return held_bytes(self._module) + sum(replay.memory_bytes for replay in self._replays.values())

    def load(self) -> None:
        if self.is_loaded:
            return
        self._let_go()
        network = self._module
        to_device(network, self.device)  # before its engine, which may call operators that come with it
        package = open_parts(self._plan, self.spec.network, self.device)
        # Other code may give a parameter another memory: the engine's own reference keeps the bound memory.
        bound = {name: tensor.detach() for name, tensor in self._laid_out(network, package).items()}
        package.load_constants(bound)
        self._package = package
        self._bound = bindings(network, bound)

    def unload(self) -> None:
        self._let_go()
        self._leave(self.device)

    def _let_go(self) -> None:
        self._calls.clear()
        self._replays.clear()
        self._package, self._pool, self.warning = None, None, None
        for binding in self._bound:
            # PyTorch never frees tensors that a package was given: only their memory can be freed.
            binding.memory.data = binding.memory.new_empty(0)
        self._bound = ()

    def _laid_out(self, network: torch.nn.Module, package: Any) -> dict[str, torch.Tensor]:
        """The tensors that the engine asks for, in the memory layout that it was compiled for."""
        tensors, layout = tensors_of(network), json.loads(package.get_metadata()[LAYOUT])
        used = {name: tensors.get(name) for name in package.get_constant_fqns()}
        for name, tensor in used.items():
            shape, stride, dtype = layout[name]
            found = "none" if tensor is None else f"{list(tensor.shape)} in {tensor.dtype}"
            if tensor is None or (list(tensor.shape), str(tensor.dtype)) != (shape, dtype):
                raise EngineError(
                    f"The {self.spec.network.component} engine expects {name} as {shape} in {dtype}, found {found}."
                )
            if list(tensor.stride()) != stride:
                lay_out(tensor, stride)
        return {name: tensor for name, tensor in used.items() if tensor is not None}

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        sizes = tuple(tuple(tensor.shape) for tensor in inputs.values())
        with torch.no_grad():
            replay = self._replays.get(sizes)
            if replay is not None:
                return replay(inputs)
            self._calls[sizes] += 1
            if self._calls[sizes] == WEIGHED_CALL and self._may_capture():
                return self._weighed(sizes, inputs)
            return self._direct(inputs)

    def _may_capture(self) -> bool:
        """Whether one more graph can be captured here and could gain anything."""
        return self._has_steps and len(self._replays) < MAX_GRAPHS and can_capture(self.device)

    def _weighed(self, sizes: tuple[Any, ...], inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs a call, measures whether a graph pays for these sizes, and if so captures one for the next call."""
        found, pays = is_launch_bound(lambda: self._direct(inputs), self.device)
        if pays:
            kept = frozenset(tensor.name for tensor in self.spec.network.inputs if tensor.scope is not Scope.STEP)
            try:
                self._replays[sizes] = Replay(self._direct, inputs, kept, self._graphs_pool())
            except Exception as error:  # a graph is never needed: the direct call has worked, whatever the error
                self._goes_without_graph(error)
        return found

    def _graphs_pool(self) -> Any:
        """The memory that the graphs of all sizes share: they never run at once, and their outputs are copied."""
        import torch

        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        return self._pool

    def _direct(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        outputs = run_package(lambda: self._package(**inputs), self.spec.network, self.device, self.scratch_bytes)
        return {tensor.name: value for tensor, value in zip(self.spec.network.outputs, outputs, strict=True)}

"""A network's weights as the inputs of an engine that holds none: bound in place, once, until they move."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ...common.errors import EngineError
from ..graph.outside_weights import FILE_NAME, OutsideWeights, table_from_text
from .base import LoadNetwork
from .host_weights import LazyNetwork, to_device
from .network_tensors import Binding, bindings, held_bytes, tensors_of

if TYPE_CHECKING:
    import torch

    from ..store.store import Plan

ALIGNMENT = 256
"""Bytes to whose multiples TensorRT wants an input's address."""


class EngineWeights(LazyNetwork):
    """The weights of an engine as its inputs; of an engine that holds its weights there are none.

    They are the network's own memory wherever that serves, and are bound anew once the network has other memory.
    """

    def __init__(self, plan: Plan, network: LoadNetwork, device: torch.device) -> None:
        self._plan, self._source, self._device = plan, network, device
        self._are_inside = plan.manifest.spec.holds_weights
        self._bindings: tuple[Binding, ...] | None = None
        self._copied_bytes = 0
        self.inputs: dict[str, torch.Tensor] = {}
        """The engine's inputs over the weights, as long as they are bound."""

    @property
    def are_bound(self) -> bool:
        """Whether the network still has its weights where they were bound."""
        if self._are_inside:
            return True
        return self._bindings is not None and all(binding.holds for binding in self._bindings)

    @property
    def memory_bytes(self) -> int:
        """Memory of the network on the device, and of what was computed from it."""
        return 0 if self._are_inside else held_bytes(self._module) + self._copied_bytes

    def bind(self) -> None:
        """Moves the network to the device and takes its weights.

        Raises EngineError for a network of other tensors than the engine was built for.
        """
        if self._are_inside:
            return
        to_device(self._module, self._device)
        table, found = table_from_text(self._plan.read(FILE_NAME).decode("utf-8", "replace")), tensors_of(self._module)
        self._check(table, found)
        weights = {name: found[name].detach() for name in table.weights}
        self.inputs = {name: _ready(tensor) for name, tensor in table.inputs_from(weights).items()}
        own = {tensor.data_ptr() for tensor in weights.values()}
        self._copied_bytes = sum(x.nbytes for x in self.inputs.values() if x.data_ptr() not in own)
        self._bindings = bindings(self._module, weights)

    def release(self) -> None:
        """Lets go of all memory, and moves the network back."""
        self._bindings, self._copied_bytes, self.inputs = None, 0, {}
        self._leave(self._device)

    def _check(self, table: OutsideWeights, found: Mapping[str, torch.Tensor]) -> None:
        for name, wanted in table.weights.items():
            there = found.get(name)
            if there is None or not wanted.fits(there):
                told = "none" if there is None else f"{list(there.shape)} in {there.dtype}".replace("torch.", "")
                component = self._plan.manifest.spec.network.component
                raise EngineError(
                    f"The {component} engine expects {name} as {list(wanted.shape)} in {wanted.dtype}, found {told}."
                )


def _ready(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor as an engine can read it: without gaps, from a whole multiple of ALIGNMENT where it is on a GPU."""
    if tensor.is_contiguous() and (tensor.device.type == "cpu" or tensor.data_ptr() % ALIGNMENT == 0):
        return tensor
    import torch

    return tensor.clone(memory_format=torch.contiguous_format)

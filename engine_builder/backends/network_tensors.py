"""A network's parameters and buffers by name, and the engine's knowledge of whether they are where it took them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

Layout = Mapping[str, tuple[list[int], list[int], str]]
"""Shape, strides and dtype by name."""


def tensors_of(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Every parameter and buffer, by each of its names."""
    return {
        **dict(network.named_parameters(remove_duplicate=False)),
        **dict(network.named_buffers(remove_duplicate=False)),
    }


def held_bytes(network: torch.nn.Module) -> int:
    """Memory of the network's tensors, shared memory once."""
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors_of(network).values()}.values())


def layout_of(network: torch.nn.Module) -> dict[str, tuple[list[int], list[int], str]]:
    """Shape, strides and dtype of every parameter and buffer."""
    return {name: (list(x.shape), list(x.stride()), str(x.dtype)) for name, x in tensors_of(network).items()}


@dataclass(frozen=True)
class Binding:
    """One tensor that an engine uses: where the network holds it, and the engine's own reference to its memory."""

    owner: Mapping[str, torch.Tensor | None]
    name: str
    memory: torch.Tensor

    @property
    def holds(self) -> bool:
        """Whether the network still computes with that memory."""
        tensor = self.owner.get(self.name)
        return tensor is not None and tensor.data_ptr() == self.memory.data_ptr()


def bindings(network: torch.nn.Module, memory: Mapping[str, torch.Tensor]) -> tuple[Binding, ...]:
    """The bindings of the network's tensors of these names to the memory that an engine was given."""
    return tuple(Binding(*place_of(network, name), tensor) for name, tensor in memory.items())


def place_of(network: torch.nn.Module, name: str) -> tuple[Mapping[str, torch.Tensor | None], str]:
    """The table of the module that holds a tensor, and its name there."""
    path, _, last = name.rpartition(".")
    owner = network.get_submodule(path)
    return (owner._parameters if last in owner._parameters else owner._buffers), last

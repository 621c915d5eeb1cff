"""Moves a network to a device and back without copying tensors that host memory still has.

Weights do not change while a device computes with them. So the host's tensors are kept, most of them pages of the
checkpoint's file that the system can take back, and unloading puts them in place again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, MutableMapping, Sequence
from functools import cache
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]
Place = tuple[Mapping[str, "torch.Tensor | None"], str]
"""The table of the module that holds a tensor, and the tensor's name there: finds it again faster than the module."""


class LazyNetwork:
    """Base of what needs a network on its device for a while: `_source` gives the network at its first use.

    Between two uses a network waits in host memory. Where that is the device's own memory it is let go instead, and
    the source reads it again.
    """

    _source: Callable[[], torch.nn.Module]
    _network: torch.nn.Module | None = None

    @property
    def _module(self) -> torch.nn.Module:
        if self._network is None:
            self._network = self._source()
        return self._network

    def _leave(self, device: torch.device) -> None:
        """Gives the device's memory back."""
        if device.type == "cpu":
            self._network = None
        elif self._network is not None:
            to_host(self._network)


def to_device(network: torch.nn.Module, device: torch.device, but: Collection[torch.nn.Module] = ()) -> None:
    """Moves every tensor of the network to the device, and keeps the tensors that leave host memory for `to_host`.

    The modules `but` stay where they are. A network whose `is_borrowed` is true is moved by its owner alone.
    """
    if getattr(network, "is_borrowed", False):
        return
    if but:
        _move_around(network, device, set(but))
        return
    if device.type != "cpu":
        for module in network.modules():
            own = {name: tensor.data for name, tensor in _own(module) if tensor.device.type == "cpu"}
            if own:
                _homes().setdefault(module, {}).update(own)
    network.to(device)


def _move_around(network: torch.nn.Module, device: torch.device, but: set[torch.nn.Module]) -> None:
    """Moves the network to the device, part by part, without the modules `but`."""
    if network in but:
        return
    if but.isdisjoint(network.modules()):
        to_device(network, device)
        return
    if device.type != "cpu":
        _homes().setdefault(network, {}).update({n: x.data for n, x in _own(network) if x.device.type == "cpu"})
    network._apply(lambda tensor: tensor.to(device), recurse=False)
    for child in network.children():
        _move_around(child, device, but)


def to_host(network: torch.nn.Module) -> None:
    """Moves every tensor of the network to host memory: the kept tensor, or a copy.

    A kept tensor is used only if it still has the network's shape and dtype. A change in place on the device
    meanwhile would be lost.
    """
    if getattr(network, "is_borrowed", False):
        return
    for module in network.modules():
        homes = _homes().pop(module, {})
        for name, tensor in list(_own(module)):
            home = homes.get(name)
            if home is not None and tensor.device.type != "cpu" and _are_alike(tensor, home):
                _put(module, name, tensor, home)
    network.to("cpu")


def tensors(network: torch.nn.Module) -> Iterator[torch.Tensor]:
    """Every parameter and buffer once."""
    yield from network.parameters()
    yield from network.buffers()


def places(network: torch.nn.Module) -> tuple[Place, ...]:
    """Tables and names that hold each parameter and buffer."""
    tables = (table for module in network.modules() for table in (module._parameters, module._buffers))
    return tuple((table, name) for table in tables for name, tensor in table.items() if tensor is not None)


def are_on(found: Sequence[Place], device: torch.device) -> bool:
    """Whether the tensors in those places are all on the device."""
    return all(tensor.device == device for table, name in found if (tensor := table.get(name)) is not None)


def _own(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """A module's own tensors by name, without those of the modules in it."""
    for table in (module._parameters, module._buffers):
        yield from ((name, tensor) for name, tensor in table.items() if tensor is not None)


def _are_alike(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.shape == other.shape and one.dtype == other.dtype


def _put(module: torch.nn.Module, name: str, tensor: torch.Tensor, home: torch.Tensor) -> None:
    """Gives a module's tensor the memory `home`; the tensor stays the same object where PyTorch can."""
    import torch

    if torch._has_compatible_shallow_copy_type(tensor, home):
        tensor.data = home
    elif name in module._buffers:
        module._buffers[name] = home
    else:
        module._parameters[name] = torch.nn.Parameter(home, tensor.requires_grad)


@cache
def _homes() -> MutableMapping[torch.nn.Module, Tensors]:
    """The host's memory of modules that are on a device, whichever of the runners that share them moved them."""
    return WeakKeyDictionary()

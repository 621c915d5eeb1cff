"""What is made for one of ComfyUI's own networks, kept for as long as the network lives and is what it was."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Generic, TypeVar
from weakref import WeakKeyDictionary

from torch.nn import Module

Made = TypeVar("Made")


class Owned(Generic[Made]):
    """One thing for each network, made anew for another key. It must not hold the network itself."""

    def __init__(self) -> None:
        self._found: WeakKeyDictionary[Module, tuple[Hashable, Made]] = WeakKeyDictionary()

    def get(self, owner: Module, key: Hashable, make: Callable[[], Made]) -> Made:
        """What was made for the network under that key, else what `make` gives."""
        found = self._found.get(owner)
        if found is not None and found[0] == key:
            return found[1]
        found = None
        self._found.pop(owner, None)  # its memory goes before more is taken
        made = make()
        self._found[owner] = key, made
        return made


def state(network: Module) -> tuple[float, ...]:
    """The first number of each of a network's tensors: another one where somebody has changed them in place."""
    tensors = [each.detach() for each in network.state_dict().values() if each.numel()]
    return tuple(float(each[(0,) * each.ndim]) for each in tensors)

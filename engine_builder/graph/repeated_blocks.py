"""The repeated blocks of a network, and other functions in place of their own while it is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

FEWEST, FEWEST_LAYERS = 2, 2
"""Blocks in a list, and layers with weights in a block, from which engines of blocks are worth it."""
BlockCall = Callable[[torch.nn.Module, tuple[Any, ...], dict[str, Any]], Any]
"""Function that runs a block in its own function's place, with the same arguments."""


def repeated_blocks(network: torch.nn.Module) -> dict[str, tuple[torch.nn.Module, ...]]:
    """Blocks of one kind in the network's lists, by the path of the first: those of a transformer, for example.

    A list may hold blocks of several kinds, and one kind may stand in several lists. Blocks inside of chosen ones are
    not among them, nor are sequences, whose owners may call their members one by one.
    """
    kinds: dict[object, dict[str, torch.nn.Module]] = {}
    for path, block in _listed(network):
        kinds.setdefault(_kind(block), {})[path] = block
    found: dict[str, tuple[torch.nn.Module, ...]] = {}
    inside: set[torch.nn.Module] = set()
    for blocks in sorted(kinds.values(), key=_size, reverse=True):  # what is inside a block is never larger than it
        free = {path: block for path, block in blocks.items() if block not in inside}
        if len(free) >= FEWEST and _layers(next(iter(free.values()))) >= FEWEST_LAYERS:
            found[next(iter(free))] = tuple(free.values())
            inside.update(layer for block in free.values() for layer in block.modules())
    return found


def _listed(network: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """Path and block of every member of a list that is called itself."""
    for path, module in network.named_modules():
        if isinstance(module, torch.nn.ModuleList):
            for name, block in module.named_children():
                if not isinstance(block, torch.nn.Sequential | torch.nn.ModuleList):
                    yield f"{path}.{name}" if path else name, block


def _size(blocks: Mapping[str, torch.nn.Module]) -> int:
    """Number of the weights of one of several blocks of a kind."""
    return sum(parameter.numel() for parameter in next(iter(blocks.values())).parameters())


def _layers(block: torch.nn.Module) -> int:
    """Number of a block's layers with weights."""
    return sum(bool(layer._parameters) for layer in block.modules())


def _kind(block: torch.nn.Module) -> tuple[object, ...]:
    """Class and shapes of weights; what a layer keeps beside them, as scales of quantized ones, is its own affair."""
    weights = {name: x.shape for name, x in block.named_parameters() if name.endswith(("weight", "bias"))}
    return type(block), *sorted(weights.items())


@contextmanager
def called_instead(blocks: Mapping[torch.nn.Module, BlockCall]) -> Iterator[None]:
    """Has each block's call run the function given for it; what is around the blocks calls them as always."""
    for block, function in blocks.items():
        block.forward = _bound(block, function)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _bound(block: torch.nn.Module, function: BlockCall) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(block, args, kwargs)

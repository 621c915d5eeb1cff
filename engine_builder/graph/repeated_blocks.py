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


def repeated_blocks(network: torch.nn.Module) -> dict[str, torch.nn.ModuleList]:
    """Lists of blocks of one kind in the network, by path: those of a transformer, for example.

    A list inside a block of another one is not among them.
    """
    found: dict[str, torch.nn.ModuleList] = {}
    for path, module in network.named_modules():
        inside = any(path.startswith(f"{outer}.") for outer in found)
        if isinstance(module, torch.nn.ModuleList) and not inside and _is_of_one_kind(module):
            found[path] = module
    return found


def _is_of_one_kind(blocks: torch.nn.ModuleList) -> bool:
    if len(blocks) < FEWEST or sum(bool(layer._parameters) for layer in blocks[0].modules()) < FEWEST_LAYERS:
        return False
    first = _kind(blocks[0])
    return all(_kind(block) == first for block in blocks)


def _kind(block: torch.nn.Module) -> tuple[type[torch.nn.Module], Mapping[str, torch.Size]]:
    """Class and shapes of weights; what a layer keeps beside them, as scales of quantized ones, is its own affair."""
    weights = {name: x.shape for name, x in block.named_parameters() if name.endswith(("weight", "bias"))}
    return type(block), weights


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

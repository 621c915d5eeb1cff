"""Engines for the repeated blocks of a MODEL's network, where the network as a whole cannot have one.

The network itself runs, and each of its blocks by an engine that takes the block's weights in the state in which
ComfyUI's layers use them at that moment: quantized, patched, or brought in from the host's memory. What stands around
the blocks stays as it is, controls and other packs' patches of whole blocks among it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher

from ...common.errors import InputError
from ...engine_builder.graph.repeated_blocks import BlockCall, called_instead, repeated_blocks
from ...runtime.external.compiled_network import CompiledNetwork, Tally
from ...runtime.external.network_call import Call, named_arguments, read_call
from .block_network import BlockNetwork
from .block_weights import fp8_products, unsupported_layers, weights_of
from .network import OPTIONS
from .unsupported_reasons import patches_inside_blocks

Original = Callable[[], Any]
MakeNetwork = Callable[[BlockNetwork], CompiledNetwork]


@dataclass
class _Group:
    """The blocks of one kind, which share their engines."""

    path: str
    """That of the first block."""
    model: Any
    blocks: tuple[torch.nn.Module, ...]
    compiled: dict[object, CompiledNetwork] = field(default_factory=dict)
    """By the precision computed in, and the layers that multiply in fp8."""
    has_engine: bool = True
    """Whether an engine has served this call of the network so far."""
    refused: dict[str, int] = field(default_factory=dict)
    """Number of this run's calls that the blocks themselves took, by the reason."""

    @property
    def kind(self) -> str:
        """The class of the blocks."""
        return type(self.blocks[0]).__name__


class BlockEngines:
    """The engines of a model's blocks; `make` gives the engines of one kind of block."""

    def __init__(self, make: MakeNetwork) -> None:
        self._make = make
        self._network: torch.nn.Module | None = None
        self._groups: dict[str, _Group] = {}
        self._reasons: dict[str, None] = {}
        """Reasons why the network itself had no engine in this run."""

    def run(self, patcher: ModelPatcher, reason: str, original: Original) -> tuple[bool, Any]:
        """Whether the network has repeated blocks, and if so the result of `original()` with engines in their place.

        Raises MissingEngineError, or the error of a build, when the policy is to stop.
        """
        blocks: dict[torch.nn.Module, BlockCall] = {}
        for group in self._groups_of(patcher):
            group.has_engine = True
            blocks |= self._calls(group)
        if not blocks:
            return False, None
        self._reasons[reason] = None
        with called_instead(blocks):
            return True, original()

    def begin(self) -> None:
        """Forgets the numbers of the last run."""
        self._reasons.clear()
        for group in self._groups.values():
            group.refused.clear()

    def take_told(self) -> list[str]:
        """Lines on the calls whose blocks ran by engines since the last look; empty without any."""
        if not self._reasons:
            return []
        lines = [f"Block by block: {reason}" for reason in self._reasons]
        return [*(line for group in self._groups.values() for line in _told(group)), *lines]

    def forget(self) -> None:
        """Frees all memory of the engines."""
        for group in self._groups.values():
            for compiled in group.compiled.values():
                compiled.unload()
        self._groups, self._network = {}, None

    def _groups_of(self, patcher: ModelPatcher) -> Iterable[_Group]:
        network = patcher.model.diffusion_model
        if network is not self._network:
            self.forget()
            self._network = network
            kinds = repeated_blocks(network)
            self._groups = {path: _Group(path, patcher.model, blocks) for path, blocks in kinds.items()}
        return self._groups.values()

    def _calls(self, group: _Group) -> dict[torch.nn.Module, BlockCall]:
        """What to call in place of each block that an engine can replace."""
        found: dict[torch.nn.Module, BlockCall] = {}
        for block in group.blocks:
            reason = next(unsupported_layers(block), None)
            if reason is None:
                found[block] = partial(self._run, group, fp8_products(block))
            else:
                group.refused[reason] = group.refused.get(reason, 0) + 1
        return found

    def _run(
        self,
        group: _Group,
        in_fp8: Mapping[str, bool],
        block: torch.nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> Any:
        """One call of a block, by an engine if one is there or may be built."""
        memory.throw_exception_if_processing_interrupted()
        function = type(block).forward

        def original() -> Any:
            return function(block, *args, **kwargs)

        if not group.has_engine:
            return self._as_it_is(group, original)
        try:
            call = _read(function, block, args, kwargs)
            compiled = self._compiled(group, call.latents.dtype, in_fp8)
        except InputError as error:
            group.has_engine = False
            return self._as_it_is(group, original, str(error))
        before = compiled.tally.original
        weights = weights_of(block, call.latents.dtype, call.latents.device, in_fp8)
        result = compiled.run(call.with_weights(weights), original)
        group.has_engine = compiled.tally.original == before
        return result

    def _as_it_is(self, group: _Group, original: Original, reason: str = "") -> Any:
        group.refused[reason] = group.refused.get(reason, 0) + 1
        return original()

    def _compiled(self, group: _Group, dtype: torch.dtype, in_fp8: Mapping[str, bool]) -> CompiledNetwork:
        key = (dtype, tuple(in_fp8.items()))
        if key not in group.compiled:
            group.compiled[key] = self._make(BlockNetwork(group.model, group.path, dtype, in_fp8))
        return group.compiled[key]


def _read(
    function: Callable[..., Any], block: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Call:
    """A block's call; raises InputError for one that an engine cannot make."""
    arguments = named_arguments(function, (block, *args), kwargs)
    del arguments["self"]
    for reason in patches_inside_blocks(arguments.pop(OPTIONS, None) or {}):
        raise InputError(reason)
    return read_call(arguments)


def _told(group: _Group) -> list[str]:
    """Lines on a group's calls in this run."""
    tally, notes, backends = Tally(), [], dict[str, None]()
    for compiled in group.compiled.values():
        own, compiled.tally = compiled.tally, Tally()
        tally.engine += own.engine
        tally.compared += own.compared
        tally.original += own.original
        notes += compiled.take_notes()
        backends |= dict.fromkeys(compiled.backends())
    by_engine, calls = tally.engine + tally.compared, tally.calls + sum(group.refused.values())
    by = f"{calls} of {calls} calls of {group.kind} by the block as it is"
    if by_engine:
        by = f"{by_engine} of {calls} calls of {group.kind} by the {' and '.join(backends)} engine"
    return [by, *(f"{group.kind} runs as it is: {reason}" for reason in group.refused if reason), *notes]

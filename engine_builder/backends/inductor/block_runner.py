"""Runs a network whose blocks have one engine: the network itself is called, and each block's call takes the engine.

Blocks whose weights the device has no room for are brought from host memory, each while another one computes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from ....common.errors import EngineError
from ....common.spec import EngineSpec
from ...graph.repeated_blocks import called_instead
from ..base import LoadNetwork, Runner
from ..block_stream import BlockStream, held_count, spread
from ..host_weights import LazyNetwork, Place, are_on, places, to_device
from ..network_tensors import held_bytes, layout_of, place_of
from .blocks import BLOCK, blocks_of
from .package import lay_out, lies_ready, open_block, ready, run_package

if TYPE_CHECKING:
    import torch

    from ...store.store import Plan

Layout = Mapping[str, tuple[list[int], list[int], str]]


class BlockRunner(LazyNetwork, Runner):
    """A network with an engine in the place of each of its blocks, over the blocks' own weights as they are then."""

    backend: ClassVar[str] = "inductor"
    streams: ClassVar[bool] = True

    def __init__(self, plan: Plan, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> None:
        super().__init__(spec, device)
        self._plan, self._source = plan, network
        self._package: Any = None
        self._here: tuple[Place, ...] = ()
        """Places of all weights that stay on the device."""
        self._weights: list[tuple[Place, ...]] = []
        """Places of each block's weights, in the order in which the engine takes them."""
        self._numbers: dict[torch.nn.Module, int] = {}
        self._stream: BlockStream | None = None
        self._streamed: frozenset[int] = frozenset()

    @property
    def is_loaded(self) -> bool:
        """True when every weight is where it was put: other runners may share some of them and have moved them."""
        return self._package is not None and are_on(self._here, self.device)

    @property
    def memory_bytes(self) -> int:
        """Memory of the weights that stay on the device, and of the buffers for the others."""
        every = held_bytes(self._module)
        if self._stream is None:
            return every
        brought = sum(self._block_bytes(number) for number in self._streamed)
        return every - brought + self._stream.memory_bytes

    def load(self) -> None:
        if self.is_loaded:
            return
        self.unload()
        network, blocks = self._module, list(blocks_of(self._module) or ())
        total_bytes, block_bytes = held_bytes(network), held_bytes(blocks[0])
        held = held_count(total_bytes, block_bytes, len(blocks), self.room_bytes)
        self._streamed = frozenset(spread(len(blocks), held))
        brought = [blocks[number] for number in self._streamed]
        to_device(network, self.device, brought)  # before its engine, which may call operators that come with it
        package = open_block(self._plan, self.spec.network, self.device)
        layout = json.loads(package.get_metadata()[BLOCK])
        for number, block in enumerate(blocks):
            self._check(f"block {number}", layout, block)
        self._weights = [_settled(layout, block) for block in blocks]
        self._numbers = {block: number for number, block in enumerate(blocks)}
        if brought:
            found = {number: self._tensors(number) for number in self._streamed}
            self._stream = BlockStream(found, self.device)
            self.warning = (
                f"{self.spec.network.component} has no room on the GPU for all its weights: {len(brought)} of its "
                f"{len(blocks)} blocks are brought from host memory at each step."
            )
        left_out = {id(table) for number in self._streamed for table, _ in self._weights[number]}
        self._here = tuple(place for place in places(network) if id(place[0]) not in left_out)
        self._package = package

    def unload(self) -> None:
        if self._stream is not None:
            self._stream.close()
        self._package, self._stream, self.warning = None, None, None
        self._weights, self._numbers, self._here, self._streamed = [], {}, (), frozenset()
        self._leave(self.device)

    def _check(self, name: str, wanted: Layout, block: torch.nn.Module) -> None:
        """Raises EngineError for a block of other weights than the engine takes."""
        found = layout_of(block)
        for weight in {**wanted, **found}:
            (shape, _, dtype), there = wanted.get(weight, ([], [], "none")), found.get(weight)
            if there is None or (there[0], there[2]) != (shape, dtype):
                told = "none" if there is None else f"{there[0]} in {there[2]}"
                raise EngineError(
                    f"The {self.spec.network.component} engine expects {weight} of {name} as {shape} in {dtype}, "
                    f"found {told}."
                )

    def _tensors(self, number: int) -> list[torch.Tensor]:
        """A block's weights where the network has them."""
        return [tensor.detach() for table, name in self._weights[number] if (tensor := table[name]) is not None]

    def _block_bytes(self, number: int) -> int:
        return sum(tensor.nbytes for tensor in self._tensors(number))

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        with torch.no_grad(), called_instead(dict.fromkeys(self._numbers, self._called)):
            found = self._module(**inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        return {tensor.name: value for tensor, value in zip(self.spec.network.outputs, outputs, strict=True)}

    def _called(self, block: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """A block's call by the engine."""
        given = [ready(value, None) for value in args if value is not None]
        with self._brought(self._numbers[block]) as weights:
            call = partial(self._package, [*given, *weights])
            (found,) = run_package(call, self.spec.network, self.device, self.scratch_bytes)
        return found

    def _brought(self, number: int) -> AbstractContextManager[Sequence[torch.Tensor]]:
        """A block's weights on the device."""
        if self._stream is not None and number in self._streamed:
            return self._stream.brought(number)
        return nullcontext(self._tensors(number))


def _settled(layout: Layout, block: torch.nn.Module) -> tuple[Place, ...]:
    """Places of a block's weights in the order in which the engine takes them, once they lie as it reads them."""
    found = [(place_of(block, name), stride) for name, (_, stride, _) in layout.items()]
    for (table, name), stride in found:
        tensor = table[name]
        if tensor is not None and not lies_ready(tensor, stride):
            lay_out(tensor, stride)
    return tuple(place for place, _ in found)

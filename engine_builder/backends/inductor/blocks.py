"""One engine for all blocks of a network: it is compiled from one of them, whose weights are inputs of its code.

So an engine of 40 blocks is built in the time of one, and serves every fine-tune. What stands before and after the
blocks is a thousandth of the work and runs as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from ....common.errors import EngineError
from ....common.spec import EngineSpec
from ...graph.onnx_export import example_inputs
from ...graph.repeated_blocks import called_instead
from ..network_tensors import layout_of, tensors_of

if TYPE_CHECKING:
    from torch.export import ExportedProgram

BLOCK = "block"
"""The entry of a package's metadata with the layout of a block's weights, in the order in which its code takes them."""
Arguments = tuple["torch.Tensor | None", ...]


def blocks_of(network: torch.nn.Module) -> torch.nn.ModuleList | None:
    """The equal blocks of a network that names their list by `repeated`; None for another network."""
    path = getattr(network, "repeated", None)
    if path is None:
        return None
    blocks = network.get_submodule(path)
    assert isinstance(blocks, torch.nn.ModuleList)  # noqa: S101 - the network's own attribute
    return blocks


def block_layout(block: torch.nn.Module) -> str:
    """Shape, strides and dtype of each of a block's weights by name, as an entry of a package's metadata."""
    return json.dumps(layout_of(block))


def export_block(
    network: torch.nn.Module, blocks: torch.nn.ModuleList, spec: EngineSpec, sizes: dict[str, int], device: torch.device
) -> ExportedProgram:
    """The program of a block that takes its arguments and then its weights, traced on the device.

    `sizes` are those to trace at. A dimension of an argument that differs among the profile's sizes is dynamic, and one
    that differs in the context `traced_as`, where the network has such. Raises EngineError for a block with tensors of
    its own beside its weights.
    """
    calls = [_first_call(network, blocks, spec, each, device) for each in (sizes, *spec.profile.corners)]
    context = getattr(network, "traced_as", None)
    if context is not None:
        with context():
            calls.insert(0, _first_call(network, blocks, spec, sizes, device))
    arguments = calls[0]
    stateless = StatelessBlock(blocks[0])
    weights = tuple(tensors_of(blocks[0]).values())
    axes = tuple(_dynamic_axes(values) for values in zip(*calls, strict=True))
    program = torch.export.export(
        stateless, (arguments, weights), dynamic_shapes=(axes, (None,) * len(weights)), strict=False
    )
    if program.constants:
        found = next(iter(program.constants))
        raise EngineError(f"Expected a block whose tensors are weights, found {found} in {spec.network.component}.")
    return program


class StatelessBlock(torch.nn.Module):
    """A block that is given its weights with each call, and holds none."""

    def __init__(self, block: torch.nn.Module) -> None:
        super().__init__()
        names = tuple(tensors_of(block))

        def forward(arguments: Arguments, weights: Sequence[torch.Tensor]) -> torch.Tensor:
            # The block is known to this function alone, so that exporters see a network without weights.
            return torch.func.functional_call(block, dict(zip(names, weights, strict=True)), arguments)

        self.forward = forward


class _ReachedError(Exception):
    """Ends a network's call at its first block."""


def _first_call(
    network: torch.nn.Module,
    blocks: torch.nn.ModuleList,
    spec: EngineSpec,
    sizes: dict[str, int],
    device: torch.device,
) -> Arguments:
    """The arguments of the network's first block at these sizes, contiguous as the engine reads them."""
    found: list[Any] = []

    def stop(block: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        found.extend(args)
        raise _ReachedError

    inputs = {name: tensor.to(device) for name, tensor in example_inputs(spec, sizes).items()}
    try:
        with called_instead({blocks[0]: stop}):
            network(**inputs)
    except _ReachedError:
        return tuple(None if value is None else value.contiguous() for value in found)
    raise EngineError(f"{spec.network.component} has no call of its blocks.")


def _dynamic_axes(values: Sequence[torch.Tensor | None]) -> dict[int, Any] | None:
    """The axes whose sizes differ among the tensors that one argument has been."""
    if values[0] is None:
        return None
    shapes = zip(*(value.shape for value in values if value is not None), strict=True)
    return {axis: torch.export.Dim.DYNAMIC for axis, sizes in enumerate(shapes) if len(set(sizes)) > 1}

"""Cuts a traced network into parts that processes compile side by side.

PyTorch's compiler is one thread of Python: a graph of thousands of operators takes it minutes, whatever cores there
are. Each part is a stretch of the graph and returns the values that later parts read.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from ..base import Part
from .package import Wires

if TYPE_CHECKING:
    import torch

SLACKS = (8, 4, 2)
"""Divisors of a part's length that bound a cut's distance from its even place, tried in order until one fits."""


@dataclass(frozen=True)
class Cut:
    """One part of a traced network: a module over its own weights, example inputs, and its wires."""

    module: torch.nn.Module
    examples: tuple[torch.Tensor, ...]
    wires: Wires


def cut(program: Any, part: Part) -> Cut | None:
    """The part of a torch.export.ExportedProgram; None where the graph cannot be cut into that many parts.

    A graph cannot be cut if its shapes are symbols, or if at every possible place a later node needs a value that is
    no tensor, or writes to an earlier tensor.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    if any(node.target is not operator.getitem and not hasattr(node.target, "_schema") for node in nodes):
        return None  # their written arguments are unknown
    bounds = _bounds(nodes, program.graph_signature.user_outputs, part.count)
    if bounds is None:
        return None
    return _cut(program, nodes, bounds, part)


def _bounds(nodes: Sequence[Any], outputs: Sequence[str], count: int) -> list[int] | None:
    """Starts of the parts, and the end; each cut is where the fewest values cross, near its even place."""
    changing = _changing(nodes)
    alive = [None if place in changing else count for place, count in enumerate(_crossing(nodes, set(outputs)))]
    length = len(nodes) // count
    if not length:
        return None
    bounds = [0]
    for even in range(length, count * length, length):
        fit = next(filter(None, (_fit(alive, even, length // slack) for slack in SLACKS)), None)
        if fit is None or fit <= bounds[-1]:
            return None
        bounds.append(fit)
    return [*bounds, len(nodes)]


def _fit(alive: Sequence[int | None], even: int, reach: int) -> int | None:
    """Place within `reach` of an even one where the fewest values cross, the nearest of several; None without one."""
    near = [(alive[at], abs(at - even), at) for at in range(max(1, even - reach), min(even + reach + 1, len(alive)))]
    return min((found for found in near if found[0] is not None), default=(0, 0, None))[2]


def _crossing(nodes: Sequence[Any], outputs: set[str]) -> Iterator[int | None]:
    """For each place before a node, how many values are made before it and needed from there on.

    None where one of them is not a tensor of known shape.
    """
    number = {node: at for at, node in enumerate(nodes)}
    ends: dict[int, list[Any]] = {}
    alive: set[Any] = set()
    for at, node in enumerate(nodes):
        for ended in ends.pop(at, ()):
            alive.discard(ended)
        yield len(alive) if all(_is_known(each.meta.get("val")) for each in alive) else None
        last = max((number.get(user, len(nodes)) for user in node.users), default=at)
        last = len(nodes) if node.name in outputs else last
        if last > at:
            alive.add(node)
            ends.setdefault(last + 1, []).append(node)


def _changing(nodes: Sequence[Any]) -> set[int]:
    """The places before which there is a value that an operator from there on writes to."""
    number = {node: at for at, node in enumerate(nodes)}
    spans = [(number.get(_memory(each), -1), at) for at, node in enumerate(nodes) for each in _written(node)]
    return {place for made, written in spans for place in range(made + 1, written + 1)}


def _written(node: Any) -> list[Any]:
    """The arguments that the operator writes to."""
    if node.target is operator.getitem:
        return []
    arguments = node.target._schema.arguments
    given = {**dict(zip((each.name for each in arguments), node.args, strict=False)), **node.kwargs}
    written = [each.name for each in arguments if each.alias_info is not None and each.alias_info.is_write]
    return [given[name] for name in written if name in given]


def _memory(node: Any) -> Any:
    """The node that made the value's memory: a view shares another node's memory."""
    while node.op == "call_function" and node.all_input_nodes:
        is_view = node.target is operator.getitem or any(each.alias_info for each in node.target._schema.returns)
        if not is_view:
            break
        node = node.all_input_nodes[0]
    return node


def _is_known(value: Any) -> bool:
    """Whether the value is a tensor whose sizes are numbers."""
    import torch

    return isinstance(value, torch.Tensor) and all(type(size) is int for size in (*value.shape, *value.stride()))


def _strides(value: torch.Tensor) -> tuple[int, ...]:
    """Strides of a tensor between parts: its own if its elements fill their memory, else contiguous ones."""
    import torch

    expected = 1
    for stride, size in sorted(zip(value.stride(), value.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return tuple(torch.empty(value.shape, device="meta").stride())
            expected *= size
    return tuple(value.stride())


def _cut(program: Any, nodes: Sequence[Any], bounds: Sequence[int], part: Part) -> Cut:
    import torch

    mine = nodes[bounds[part.index] : bounds[part.index + 1]]
    inside, outputs = set(mine), program.graph_signature.user_outputs
    graph, copies, reads, root = torch.fx.Graph(), {}, [], {}
    weights = _weights(program)
    outer = [each for node in mine for each in node.all_input_nodes if each not in inside]
    for node in dict.fromkeys(outer):
        if node.name in weights:
            name, root[name] = weights[node.name][0], weights[node.name][1]
            copies[node] = graph.get_attr(name)
        elif node.op == "get_attr":
            root[node.target] = attrgetter(node.target)(program.graph_module)
            copies[node] = graph.get_attr(node.target)
        else:
            reads.append(node)
    for node in reads:
        copies[node] = graph.placeholder(f"read_{len(copies)}")
    for node in mine:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    later = {each for node in nodes[bounds[part.index + 1] :] for each in node.all_input_nodes}
    returned = [node for node in mine if node in later or node.name in outputs]
    graph.output(tuple(_in_order(graph, node, copies[node]) for node in returned))
    wires = Wires(
        reads=tuple(node.name for node in reads),
        strides=tuple(_strides(node.meta["val"]) for node in reads),
        returns=tuple(node.name for node in returned),
        results=tuple(outputs),
        count=part.count,
    )
    return Cut(torch.fx.GraphModule(root, graph), tuple(_example(node.meta["val"]) for node in reads), wires)


def _in_order(graph: Any, node: Any, copied: Any) -> Any:
    """The value with its elements side by side."""
    import torch

    value = node.meta["val"]
    if _strides(value) == tuple(value.stride()):
        return copied
    return graph.call_function(torch.ops.aten.clone.default, (copied,), {"memory_format": torch.contiguous_format})


def _weights(program: Any) -> dict[str, tuple[str, torch.Tensor]]:
    """Every parameter, buffer and constant of the network: its own name and the tensor, by the graph's name."""
    signature = program.graph_signature
    names = {
        **signature.inputs_to_parameters,
        **signature.inputs_to_buffers,
        **signature.inputs_to_lifted_tensor_constants,
    }
    tensors = {**program.constants, **program.state_dict}
    return {placeholder: (name, tensors[name]) for placeholder, name in names.items()}


def _example(value: torch.Tensor) -> torch.Tensor:
    """An example tensor with the same layout."""
    import torch

    return torch.empty_strided(tuple(value.shape), _strides(value), dtype=value.dtype, device=value.device).zero_()

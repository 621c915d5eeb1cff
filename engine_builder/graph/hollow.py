"""Networks without memory for their weights: all that an export needs where the engine holds none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

if TYPE_CHECKING:
    from torch.nn import Module, Parameter


def weight_names(network: Module) -> tuple[str, ...]:
    """The names of the network's weights: floating tensors of its state, not those that it computes by itself."""
    state = network.state_dict(keep_vars=True)
    return tuple(name for name, tensor in state.items() if tensor.is_floating_point())


@contextmanager
def without_memory(network: Module) -> Iterator[FakeTensorMode]:
    """Gives the network's parameters stand-ins for the block, as a trace takes them: a shape and a dtype on the CPU.

    Buffers keep their values, which may end up in the graph, and are on the CPU too.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    tables: list[dict[str, Any]] = [table for each in network.modules() for table in (each._parameters, each._buffers)]
    kept = [dict(table) for table in tables]
    made: dict[Parameter, Parameter] = {}
    try:
        with mode:
            for table in tables[::2]:
                for name, parameter in table.items():
                    if parameter is not None:
                        made.setdefault(parameter, _stand_in(parameter))
                        table[name] = made[parameter]
        for table in tables[1::2]:
            table.update({name: buffer.cpu() for name, buffer in table.items() if buffer is not None})
        yield mode
    finally:
        for table, before in zip(tables, kept, strict=True):
            table.update(before)


def _stand_in(parameter: Parameter) -> Parameter:
    return torch.nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype), requires_grad=False)

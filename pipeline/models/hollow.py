"""Networks without memory for their weights: what an engine that holds none is built from before any are there."""

from __future__ import annotations

from collections.abc import Callable

from torch.nn import Module, Parameter


def made_hollow(make: Callable[[], Module]) -> Module:
    """The network that `make` constructs, with its parameters on the device `meta`: they take no memory."""
    register = Module.register_parameter

    def register_hollow(module: Module, name: str, parameter: Parameter | None) -> None:
        register(module, name, parameter if parameter is None else _on_meta(parameter))

    Module.register_parameter = register_hollow  # type: ignore[method-assign]
    try:
        return make()
    finally:
        Module.register_parameter = register  # type: ignore[method-assign]


def _on_meta(parameter: Parameter) -> Parameter:
    return Parameter(parameter.data.to("meta"), requires_grad=False)

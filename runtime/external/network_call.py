"""One call of another owner's network, split into its tensors and its constant arguments.

A network of ComfyUI's takes its family's arguments: positional tensors, keywords, lists, numbers, None. An engine
takes named tensors alone. So a call is read as a tree of plain data with the tensors' names in their places, which
goes into the engine's key and to the process that builds it; that process makes the same call again from tensors.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from ...common.digest import canonical_json
from ...common.errors import EngineError, InputError
from ...common.shapes import DimRange, ShapeProfile
from ...common.spec import PRECISIONS, Scope, TensorSpec

SIDE = DimRange(8, 64, 512, 8)
"""Latent height and width that an engine for a range takes: a latent is 8 or 16 pixels."""
FRAMES = DimRange(2, 21, 64)
_NAMES = {4: (None, None, "latent_height", "latent_width"), 5: (None, None, "frames", "latent_height", "latent_width")}
"""Names of the dimensions that may differ from call to call, by the number of the latents' axes."""
_TIMES = (0.0, 1000.0)
POSITIONAL = "positional"
"""Name of the arguments that a function takes without names of their own."""
PREDICTION = "prediction"
"""Name of a network's one output; several are numbered."""


@dataclass(frozen=True)
class Call:
    """A call's arguments: `tree` as canonical JSON with tensors replaced by their names, and the tensors by name.

    `weights` names tensors that stand nowhere in the tree: the network's weights, which come with each call.
    """

    tree: str
    tensors: Mapping[str, torch.Tensor]
    weights: frozenset[str] = frozenset()

    def kept(self) -> Call:
        """The same call with inputs of its own, for a network may write into those that it is given."""
        tensors = {name: x if name in self.weights else x.clone() for name, x in self.tensors.items()}
        return replace(self, tensors=tensors)

    def with_weights(self, weights: Mapping[str, torch.Tensor]) -> Call:
        """The same call with the network's weights, by the names of its parameters."""
        named = {weight_input(name): tensor for name, tensor in weights.items()}
        return replace(self, tensors={**self.tensors, **named}, weights=frozenset(named))

    @property
    def latents(self) -> torch.Tensor:
        """Latents that the network denoises: its first tensor."""
        return next(iter(self.tensors.values()))

    @property
    def precision(self) -> str:
        """The precision of the latents; raises InputError for one that engines do not have."""
        for name, dtype in PRECISIONS.items():
            if self.latents.dtype == getattr(torch, dtype):
                return name
        raise InputError(f"Engines take latents in {', '.join(PRECISIONS.values())}, found {self.latents.dtype}.")


def named_arguments(function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `function(*args, **kwargs)` by name, defaults too; those without a name are `POSITIONAL`.

    Raises InputError for arguments without names behind others that have them.
    """
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is not inspect.Parameter.VAR_POSITIONAL:
            named[name] = value
        elif value and not named.keys() - {"self"}:
            named[POSITIONAL] = value
        elif value:
            raise InputError(f"Expected arguments that have names, found {len(value)} more.")
    return named


def read_call(arguments: Mapping[str, Any]) -> Call:
    """The call with those arguments; raises InputError for an argument that is neither a tensor nor plain data."""
    tensors: dict[str, torch.Tensor] = {}
    tree = {name: _packed(name, value, tensors) for name, value in arguments.items()}
    if not tensors:
        raise InputError("Expected a tensor among the arguments, found none.")
    return Call(canonical_json(tree), tensors)


def _packed(name: str, value: Any, tensors: dict[str, torch.Tensor]) -> Any:
    """The value as JSON; tensors are put aside under names made from that of their argument."""
    if isinstance(value, torch.Tensor) and name not in tensors:
        tensors[name] = value
        return {"tensor": name}
    if value is None or isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_packed(f"{name}_{number}", each, tensors) for number, each in enumerate(value)]}
    if isinstance(value, dict) and all(isinstance(key, str) and key.isidentifier() for key in value):
        return {"dict": {key: _packed(f"{name}_{key}", each, tensors) for key, each in value.items()}}
    raise InputError(f"The argument {name} is a {type(value).__name__}, which an engine cannot take.")


def _unpacked(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _unpacked(each, tensors) for key, each in content.items()}
    made = [_unpacked(each, tensors) for each in content]
    return made if kind == "list" else tuple(made)


def weight_input(parameter: str) -> str:
    """Name of the tensor that a parameter is given by: `attention.q.weight` is `weights__attention__q__weight`."""
    return f"weights__{parameter.replace('.', '__')}"


def _arguments(tree: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a call without names and with them, made again from its tree and its tensors."""
    named = {name: _unpacked(value, tensors) for name, value in tree.items()}
    return named.pop(POSITIONAL, ()), named


def _names(tree: Mapping[str, Any]) -> list[str]:
    """The names of the tensors in a call's tree."""
    return [name for value in tree.values() for name in _names_in(value)]


def _named(function: Callable[..., Any], names: Iterable[str]) -> Callable[..., Any]:
    """The function with a signature of these arguments: exporters ask for their names."""
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
    function.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
    return function


def _names_in(value: Any) -> Iterator[str]:
    if not isinstance(value, dict):
        return
    ((kind, content),) = value.items()
    if kind == "tensor":
        yield content
    else:
        for each in content.values() if kind == "dict" else content:
            yield from _names_in(each)


class WrappedNetwork(torch.nn.Module):
    """A network whose method `method` is called as in `tree`; takes the tensors alone, by name.

    `extra` are arguments that are given anew at every call, such as options that the network writes into.
    """

    def __init__(self, network: torch.nn.Module, method: str, tree: str, extra: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        self.network = network
        arguments: dict[str, Any] = json.loads(tree)

        def forward(**tensors: torch.Tensor) -> Any:
            # not `self`, which would outlive its last user
            positional, named = _arguments(arguments, tensors)
            return getattr(network, method)(*positional, **named, **extra())

        self.forward = _named(forward, _names(arguments))


class StatelessNetwork(torch.nn.Module):
    """A network that takes its weights with each call, beside the tensors of `tree`, and holds none of its own.

    The weights' tensors are named by `weight_input`.
    """

    is_borrowed = True

    def __init__(self, network: torch.nn.Module, tree: str, extra: Callable[[], dict[str, Any]]) -> None:
        super().__init__()
        arguments: dict[str, Any] = json.loads(tree)
        weights = {weight_input(name): name for name, _ in network.named_parameters()}

        def forward(**tensors: torch.Tensor) -> Any:
            # In this function alone, so that exporters and memory managers see a network without weights.
            state = {name: tensors[given] for given, name in weights.items()}
            positional, named = _arguments(arguments, tensors)
            return torch.func.functional_call(network, state, positional, {**named, **extra()})

        self.forward = _named(forward, [*_names(arguments), *weights])

    def to(self, *_: Any, **__: Any) -> StatelessNetwork:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self


class SharedWeightsNetwork(WrappedNetwork):
    """The same over another owner's network, which its owner alone moves."""

    is_borrowed = True

    def to(self, *_: Any, **__: Any) -> SharedWeightsNetwork:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self


def input_specs(call: Call) -> tuple[TensorSpec, ...]:
    """Specifications of the call's tensors; a dimension as large as the latents' has a name.

    The network of a call that brings its weights is one of many that share an engine: none of its inputs stays the
    same from one call to the next, which is what a CUDA graph would need.
    """
    if call.weights:
        return tuple(_lasting(name, tensor, name in call.weights) for name, tensor in call.tensors.items())
    return tuple(_tensor_spec(name, tensor, call.latents) for name, tensor in call.tensors.items())


def output_specs(outputs: Mapping[str, torch.Tensor], latents: torch.Tensor) -> tuple[TensorSpec, ...]:
    """Specifications of a network's outputs; a dimension as large as the latents' has a name."""
    return tuple(_tensor_spec(name, tensor, latents) for name, tensor in outputs.items())


def _lasting(name: str, tensor: torch.Tensor, is_weight: bool) -> TensorSpec:
    """Specification of an input of fixed sizes, of which no graph is captured."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    span = _weight_span(name, tensor) if is_weight else _span_of_numbers(tensor)
    return TensorSpec(name, tuple(tensor.shape), dtype, Scope.CLIP, span=span)


def _weight_span(name: str, tensor: torch.Tensor) -> tuple[float, float]:
    """Range that a trial run draws a weight from, so that what goes through the network keeps its size."""
    if name.endswith("scale"):
        return (1e-4, 1.1e-4) if name.endswith("weight_scale") else (0.9, 1.1)
    if tensor.element_size() == 1:
        return (-400.0, 400.0)  # fp8: as its scale has it
    if tensor.ndim > 1:
        bound = math.sqrt(3 / max(math.prod(tensor.shape[1:]), 1))
        return (-bound, bound)
    return (-0.02, 0.02) if name.endswith("bias") else (0.9, 1.1)


def _tensor_spec(name: str, tensor: torch.Tensor, latents: torch.Tensor) -> TensorSpec:
    dims: list[str | int] = list(tensor.shape)
    names = _NAMES.get(latents.ndim, ())
    if tensor.ndim == latents.ndim:
        for axis, named in enumerate(names):
            if named is not None and tensor.shape[axis] == latents.shape[axis]:
                dims[axis] = named
    return TensorSpec(name, tuple(dims), str(tensor.dtype).removeprefix("torch."), span=_span(tensor, latents))


def _span(tensor: torch.Tensor, latents: torch.Tensor) -> tuple[float, float] | None:
    """Range that a trial run draws from: zeros for whole numbers, possibly indices, times for possible timesteps."""
    times = tensor.ndim <= 2 and tensor.numel() <= latents.shape[0] * FRAMES.max
    return _span_of_numbers(tensor) or (_TIMES if times else None)


def _span_of_numbers(tensor: torch.Tensor) -> tuple[float, float] | None:
    """Range of zeros for whole numbers; None for others."""
    return None if tensor.is_floating_point() else (0.0, 1.0)


def limits_of(latents: torch.Tensor) -> ShapeProfile:
    """Sizes that an engine for a range takes; a dimension outside its range or no multiple keeps its one size."""
    known = {"frames": FRAMES, "latent_height": SIDE, "latent_width": SIDE}
    found: dict[str, DimRange] = {}
    for axis, name in enumerate(_NAMES.get(latents.ndim, ())):
        if name is not None:
            size = int(latents.shape[axis])
            found[name] = DimRange(size, size, size) if known[name].violation(size) else known[name]
    return ShapeProfile(found)


def outputs_of(result: Any) -> dict[str, torch.Tensor]:
    """A network's tensors by name; raises EngineError for a result that is neither a tensor nor a tuple of them."""
    if isinstance(result, torch.Tensor):
        return {PREDICTION: result}
    if isinstance(result, tuple) and result and all(isinstance(each, torch.Tensor) for each in result):
        return {f"{PREDICTION}_{number}": tensor for number, tensor in enumerate(result)}
    raise EngineError(f"An engine gives tensors, but the network gives a {type(result).__name__}.")


def result_of(outputs: Mapping[str, torch.Tensor]) -> Any:
    """The result whose tensors these are, by the names of `outputs_of`."""
    return outputs[PREDICTION] if PREDICTION in outputs else tuple(outputs.values())

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
from dataclasses import dataclass
from typing import Any

import torch

from ...common.digest import canonical_json
from ...common.errors import EngineError, InputError
from ...common.shapes import DimRange, ShapeProfile
from ...common.spec import PRECISIONS, TensorSpec

SIDE = DimRange(8, 64, 512, 8)
"""Latent height and width that an engine for a range takes: a latent is 8 or 16 pixels."""
FRAMES = DimRange(2, 21, 64)
_NAMES = {4: (None, None, "latent_height", "latent_width"), 5: (None, None, "frames", "latent_height", "latent_width")}
"""Names of the dimensions that may differ from call to call, by the number of the latents' axes."""
_TIMES = (0.0, 1000.0)


@dataclass(frozen=True)
class Call:
    """A call's arguments: `tree` as canonical JSON with tensors replaced by their names, and the tensors by name."""

    tree: str
    tensors: Mapping[str, torch.Tensor]

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
    """The arguments of `function(*args, **kwargs)` by name, defaults too.

    Raises InputError for arguments that have no names.
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

        def forward(**tensors: torch.Tensor) -> torch.Tensor:
            given = {name: _unpacked(value, tensors) for name, value in arguments.items()}
            return getattr(network, method)(**given, **extra())  # not `self`, which would outlive its last user

        # Exporters ask for the names of the arguments.
        names = [name for value in arguments.values() for name in _names_in(value)]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        signature = inspect.Signature([inspect.Parameter(name, kind) for name in names])
        forward.__signature__ = signature  # pyright: ignore[reportFunctionMemberAccess]
        self.forward = forward


class SharedWeightsNetwork(WrappedNetwork):
    """The same over another owner's network, which its owner alone moves."""

    is_borrowed = True

    def to(self, *_: Any, **__: Any) -> SharedWeightsNetwork:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self


def tensor_specs(tensors: Mapping[str, torch.Tensor], latents: torch.Tensor) -> tuple[TensorSpec, ...]:
    """Specifications of the tensors; a dimension as large as the latents' has a name."""
    return tuple(_tensor_spec(name, tensor, latents) for name, tensor in tensors.items())


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
    if not tensor.is_floating_point():
        return (0.0, 1.0)
    times = tensor.ndim <= 2 and tensor.numel() <= latents.shape[0] * FRAMES.max
    return _TIMES if times else None


def limits_of(latents: torch.Tensor) -> ShapeProfile:
    """Sizes that an engine for a range takes; a dimension outside its range or no multiple keeps its one size."""
    known = {"frames": FRAMES, "latent_height": SIDE, "latent_width": SIDE}
    found: dict[str, DimRange] = {}
    for axis, name in enumerate(_NAMES.get(latents.ndim, ())):
        if name is not None:
            size = int(latents.shape[axis])
            found[name] = DimRange(size, size, size) if known[name].violation(size) else known[name]
    return ShapeProfile(found)


def single_output(output: Any) -> torch.Tensor:
    """The network's result; raises EngineError for one that is not a single tensor."""
    if isinstance(output, torch.Tensor):
        return output
    raise EngineError(f"An engine gives one tensor, but the network gives a {type(output).__name__}.")

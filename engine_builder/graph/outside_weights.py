"""Weights as inputs of an exported graph, so that one engine serves every fine-tune of its network.

The graph takes each of the network's weights under the network's own name for it. What it would compute from weights
alone, such as the sigmoid of a learned factor, is taken out of it: a table beside the graph says how it is computed,
once, when the weights are bound.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import EngineError
from .weight_operators import OPERATORS

if TYPE_CHECKING:
    import torch

FILE_NAME = "weights.json"


@dataclass(frozen=True)
class Constant:
    """A small tensor of the graph's own: its values, flat, its shape, and its dtype's name in PyTorch."""

    values: tuple[Any, ...]
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Step:
    """An operation on weights: ONNX's operator, its operands by name, its attributes, and its result's name."""

    operator: str
    operands: tuple[str, ...]
    attributes: Mapping[str, Any]
    result: str


@dataclass(frozen=True)
class Weight:
    """A tensor of the network: its shape, and its dtype's name in PyTorch."""

    shape: tuple[int, ...]
    dtype: str

    def fits(self, tensor: torch.Tensor) -> bool:
        """Whether the tensor is such a weight, or one in half precision of a part that computes in float32."""
        import torch

        wider = self.dtype == "float32" and tensor.dtype in (torch.float16, torch.bfloat16)
        return tuple(tensor.shape) == self.shape and (wider or tensor.dtype == getattr(torch, self.dtype))


@dataclass(frozen=True)
class OutsideWeights:
    """Tensors that a graph takes from its network.

    `weights` are the network's. `inputs` names the graph's: weights, or results of `steps`, which work on weights, on
    `constants` and on one another.
    """

    weights: Mapping[str, Weight]
    inputs: tuple[str, ...]
    steps: tuple[Step, ...] = ()
    constants: Mapping[str, Constant] = field(default_factory=dict)

    def inputs_from(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The graph's inputs, given the network's tensors on one device: a weight is its own input and not copied."""
        import torch

        device = next((tensor.device for tensor in weights.values()), None)
        known = {name: weights[name].to(getattr(torch, each.dtype)) for name, each in self.weights.items()}
        for name, each in self.constants.items():
            values = torch.tensor(each.values, dtype=getattr(torch, each.dtype), device=device)
            known[name] = values.reshape(each.shape)
        for step in self.steps:
            known[step.result] = OPERATORS[step.operator](*(known[name] for name in step.operands), **step.attributes)
        return {name: known[name] for name in self.inputs}


def table_to_text(table: OutsideWeights) -> str:
    """The table as JSON."""
    return json.dumps(asdict(table))


def table_from_text(text: str) -> OutsideWeights:
    """Rebuilds the table from `table_to_text`; raises EngineError for anything else."""
    try:
        data = json.loads(text)
        weights = {name: Weight(tuple(each["shape"]), each["dtype"]) for name, each in data["weights"].items()}
        steps = tuple(Step(**{**each, "operands": tuple(each["operands"])}) for each in data["steps"])
        constants = {
            name: Constant(tuple(each["values"]), tuple(each["shape"]), each["dtype"])
            for name, each in data["constants"].items()
        }
        table = OutsideWeights(weights, tuple(data["inputs"]), steps, constants)
        unknown = sorted({step.operator for step in steps} - set(OPERATORS))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"A table of weights is malformed: {error}.") from error
    if unknown:
        raise EngineError(f"A table of weights asks for {', '.join(unknown)}, which is no operation on weights.")
    return table


def write_table(table: OutsideWeights, folder: Path) -> None:
    """Writes the table beside a graph."""
    (folder / FILE_NAME).write_text(table_to_text(table), "utf-8")

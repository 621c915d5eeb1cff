"""Weights as inputs of a graph: what is computed from them alone, the table of it, and networks without memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx.helper import make_node
from onnx.reference import ReferenceEvaluator

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.engine_builder.graph.onnx_export import export_onnx
from i2v_tensorrt.engine_builder.graph.outside_weights import (
    FILE_NAME,
    Constant,
    OutsideWeights,
    Step,
    Weight,
    table_from_text,
    table_to_text,
)
from i2v_tensorrt.engine_builder.graph.weight_operators import OPERATORS
from i2v_tensorrt.pipeline.models.hollow import made_hollow

from ...helpers.inductor_toys import Mixed
from ...helpers.refusals import refused
from ...helpers.toys import LIMITS, raising, toy_spec

SIZES = {"batch": 2, "frames": 3, "latent_height": 8, "latent_width": 6}
SPEC = toy_spec(LIMITS.exact(SIZES), weights_sha256="")
X = torch.arange(-11.5, 12).reshape(2, 3, 4)


# Operators.


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values)


CASES: list[tuple[str, list[torch.Tensor], dict[str, Any]]] = [
    ("Add", [X, X[:, :1]], {}),
    ("Cast", [X / 3], {"to": onnx.TensorProto.FLOAT16}),
    ("Concat", [X, X[:, 1:]], {"axis": -2}),
    ("Div", [X[0], X], {}),
    ("Expand", [X[:, :1], ints(1, 3, 1)], {}),  # the operand's first and last sizes are the larger ones
    ("Expand", [X, ints(5, 1, 1, 4)], {}),
    ("Gather", [X, ints(1, 0, 1)], {}),
    ("Gather", [X, ints(2, 0, 1, 1).reshape(2, 2)], {"axis": 1}),
    ("Gather", [X, torch.tensor(3)], {"axis": -1}),
    ("Gather", [X, torch.tensor(-1)], {"axis": 0}),
    ("Identity", [X], {}),
    ("Mul", [X, X[0, 0]], {}),
    ("Neg", [X], {}),
    ("Reshape", [X, ints(0, -1)], {}),
    ("Reshape", [X[:0], ints(3, 0)], {"allowzero": 1}),
    ("Sigmoid", [X], {}),
    ("Slice", [X, ints(1), ints(3), ints(-1)], {}),
    ("Slice", [X, ints(-1, 0), ints(-9, 2), ints(2, 1), ints(-2, 1)], {}),
    ("Slice", [X, ints(1, 1), ints(9, 9)], {}),
    ("Squeeze", [X[:, None, :, :1], ints(-1, 1)], {}),
    ("Squeeze", [X[:, None, :, :1]], {}),
    ("Sub", [X[:1], X], {}),
    ("Transpose", [X], {"perm": [2, 0, 1]}),
    ("Unsqueeze", [X, ints(3, -5)], {}),
]


@pytest.mark.parametrize(("operator", "operands", "attributes"), CASES)
def test_an_operator_gives_what_onnx_says(
    operator: str, operands: list[torch.Tensor], attributes: dict[str, Any]
) -> None:
    names = [f"operand{number}" for number in range(len(operands))]
    node = make_node(operator, names, ["result"], **attributes)
    given = {name: operand.numpy() for name, operand in zip(names, operands, strict=True)}
    (expected,) = ReferenceEvaluator(node).run(None, given)
    ours = {name: "float16" if name == "to" else value for name, value in attributes.items()}
    torch.testing.assert_close(OPERATORS[operator](*operands, **ours), torch.tensor(np.array(expected)))


def test_every_operator_has_a_case() -> None:
    assert {operator for operator, *_ in CASES} == set(OPERATORS)


# The table.


TABLE = OutsideWeights(
    {"factor": Weight((4, 1), "float32"), "bias": Weight((), "float16")},
    ("bias", "flat"),
    (Step("Sigmoid", ("factor",), {}, "share"), Step("Reshape", ("share", "sizes"), {"allowzero": 1}, "flat")),
    {"sizes": Constant((4,), (1,), "int64")},
)


TEXT = table_to_text(TABLE)
KEYS = ("weights", "inputs", "steps", "constants")


def without(name: str) -> str:
    return json.dumps({key: value for key, value in json.loads(TEXT).items() if key != name})


def test_a_table_is_read_as_it_was_written() -> None:
    assert table_from_text(TEXT) == TABLE


MALFORMED: dict[str, tuple[str, str]] = {
    "empty": ("", "malformed"),
    "cut": (TEXT[:-1], "malformed"),
    "list": ("[]", "malformed"),
    "null": ("null", "malformed"),
    "deep": ("[" * 200_000, "malformed"),
    **{f"no_{key}": (without(key), f"malformed: '{key}'") for key in KEYS},
    "no_operands": (TEXT.replace('"operands"', '"operand"'), "malformed: 'operands'"),
    "no_attributes": (TEXT.replace('"attributes"', '"settings"'), "malformed: .*'settings'"),
    "operator_is_no_text": (TEXT.replace('"Sigmoid"', "[]"), "malformed"),
    "unknown_operator": (TEXT.replace('"Sigmoid"', '"Erf"'), "asks for Erf, which is no operation on weights"),
}


@pytest.mark.parametrize(("text", "words"), MALFORMED.values(), ids=MALFORMED)
def test_what_is_no_table_is_told_in_a_sentence(text: str, words: str) -> None:
    with refused(EngineError, words):
        table_from_text(text)


# Graphs.


class Weighted(torch.nn.Module):
    """Computes what it is given to compute from the sample and a learned factor, and scales each branch."""

    def __init__(self, compute: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.linspace(-1, 1, 4)[:, None, None, None], requires_grad=False)
        self.compute = compute

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        return self.compute(sample * strength[:, :, None, None, None], self.factor)


def exported(network: torch.nn.Module, folder: Path) -> tuple[list[str], list[str], OutsideWeights]:
    """The operators of the network's graph, its inputs beside the network's own, and the table of weights."""
    graph = onnx.load(export_onnx(network, SPEC, folder)).graph
    own = [tensor.name for tensor in SPEC.network.inputs]
    inputs = [value.name for value in graph.input if value.name not in own]
    return [node.op_type for node in graph.node], inputs, table_from_text((folder / FILE_NAME).read_text("utf-8"))


def test_what_a_graph_computes_from_weights_alone_is_a_step_and_its_result_an_input(tmp_path: Path) -> None:
    network = Weighted(lambda sample, factor: sample * factor.sigmoid())
    operators, inputs, table = exported(network, tmp_path)
    assert table.weights == {"factor": Weight((4, 1, 1, 1), "float32")}
    assert table.steps == (Step("Sigmoid", ("factor",), {}, inputs[0]),)
    assert tuple(inputs) == table.inputs
    assert "Sigmoid" not in operators
    found = table.inputs_from({"factor": network.factor})
    torch.testing.assert_close(found, {inputs[0]: network.factor.sigmoid()})


def test_an_export_takes_no_memory_for_a_clip_either(tmp_path: Path) -> None:
    """A network that is traced at the size of its engine: here one whose inputs no machine could hold."""
    sizes = {"batch": 2, "frames": 64, "latent_height": 1 << 17, "latent_width": 1 << 17}
    limits = ShapeProfile({name: DimRange(size, size, size) for name, size in sizes.items()})
    network = Weighted(lambda sample, factor: sample * factor)
    graph = onnx.load(export_onnx(network, toy_spec(limits, weights_sha256=""), tmp_path)).graph
    assert [axis.dim_value for axis in graph.output[0].type.tensor_type.shape.dim][1:] == [4, 64, 1 << 17, 1 << 17]


class Tied(Mixed):
    """Two layers that share a weight, not their biases."""

    def __init__(self) -> None:
        super().__init__()
        self.tied = torch.nn.Linear(4, 4)
        self.tied.weight = self.linear.weight

    def blended(self, x: torch.Tensor) -> torch.Tensor:
        return self.mix * x


def test_a_tied_weight_is_one_input_and_one_that_nothing_uses_is_none(tmp_path: Path) -> None:
    network = Tied()
    _, inputs, table = exported(network, tmp_path)
    assert set(inputs) == set(table.inputs) == set(table.weights)
    addresses = {name: tensor.data_ptr() for name, tensor in network.state_dict().items()}
    used = {address for name, address in addresses.items() if not name.startswith("unused")}
    assert sorted(addresses[name] for name in inputs) == sorted(used)


@pytest.mark.parametrize("compute", [torch.erf, lambda factor: factor.cumsum(0)])
def test_an_operator_that_is_not_known_is_refused(
    compute: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path
) -> None:
    with refused(EngineError, "found (Erf|CumSum): choose weights inside"):
        exported(Weighted(lambda sample, factor: sample * compute(factor)), tmp_path)


def test_an_output_that_depends_on_weights_alone_is_refused(tmp_path: Path) -> None:
    with refused(EngineError, "prediction depends on nothing but weights"):
        exported(Weighted(lambda sample, factor: 2 * factor.expand(4, 3, 8, 6)), tmp_path)


# Networks without memory.


def test_a_network_without_memory_gives_the_same_graph(tmp_path: Path) -> None:
    (folder := tmp_path / "hollow").mkdir()
    network, hollow = Mixed(), made_hollow(Mixed)
    before = dict(network.named_parameters())
    assert exported(hollow, folder) == exported(network, tmp_path)
    assert {x.device.type for x in hollow.parameters()} == {"meta"}
    assert all(x is before[name] for name, x in network.named_parameters()), "an export gives weights back"


def test_a_network_without_memory_has_buffers_all_the_same() -> None:
    assert {name: x.device.type for name, x in made_hollow(Mixed).named_buffers()} == {"offset": "cpu"}


def test_an_error_leaves_other_networks_their_memory() -> None:
    with pytest.raises(MemoryError):
        made_hollow(raising(MemoryError()))
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"

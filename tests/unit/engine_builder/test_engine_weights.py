"""A network's weights as an engine's inputs: its own memory wherever that serves, until it has other memory."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.backends.engine_weights import EngineWeights
from i2v_tensorrt.engine_builder.graph.outside_weights import (
    FILE_NAME,
    Constant,
    OutsideWeights,
    Step,
    Weight,
    table_to_text,
)
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.refusals import refused
from ...helpers.toys import CPU, publish, raising, toy_spec

META = torch.device("meta")
TABLE = OutsideWeights({"weight": Weight((2, 3), "float32"), "bias": Weight((2,), "float32")}, ("weight", "bias"))


def make() -> torch.nn.Linear:
    """The network of TABLE."""
    return torch.nn.Linear(3, 2)


def plan_of(store: EngineStore, table: OutsideWeights = TABLE) -> Plan:
    return publish(store, toy_spec(weights_sha256=""), {FILE_NAME: table_to_text(table).encode()})


def bound(store: EngineStore, network: torch.nn.Module, table: OutsideWeights = TABLE) -> EngineWeights:
    """The network's weights as inputs of an engine with that table."""
    weights = EngineWeights(plan_of(store, table), lambda: network, CPU)
    weights.bind()
    return weights


def size_bytes(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


def addresses(network: torch.nn.Module) -> dict[str, int]:
    return {name: parameter.data_ptr() for name, parameter in network.named_parameters()}


# What is copied, and what is not.


def test_the_inputs_are_the_networks_own_memory(store: EngineStore) -> None:
    weights = bound(store, network := make())
    assert {name: tensor.data_ptr() for name, tensor in weights.inputs.items()} == addresses(network)
    assert weights.memory_bytes == size_bytes(network)


def test_a_weight_with_gaps_is_an_input_without_and_counts_as_a_copy(store: EngineStore) -> None:
    network = make()
    network.weight.data = network.weight.data.T.contiguous().T
    weights = bound(store, network)
    assert weights.inputs["weight"].is_contiguous()
    assert torch.equal(weights.inputs["weight"], network.weight)
    assert weights.memory_bytes == size_bytes(network) + network.weight.nbytes


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_weight_in_half_precision_is_widened_for_a_part_that_computes_in_float32(
    store: EngineStore, dtype: torch.dtype
) -> None:
    weights = bound(store, network := make().to(dtype))
    torch.testing.assert_close(weights.inputs, {name: x.float() for name, x in network.state_dict().items()})
    assert weights.memory_bytes == size_bytes(network) + size_bytes(make())


@pytest.mark.parametrize(
    ("step", "compute", "copies"),
    [
        (Step("Sigmoid", ("weight",), {}, "made"), torch.sigmoid, 1),
        (Step("Transpose", ("weight",), {"perm": [1, 0]}, "made"), torch.t, 1),
        (Step("Reshape", ("weight", "sizes"), {}, "made"), torch.flatten, 0),
    ],
)
def test_what_a_step_computes_counts_as_a_copy_unless_it_is_the_same_memory(
    store: EngineStore, step: Step, compute: Callable[[torch.Tensor], torch.Tensor], copies: int
) -> None:
    sizes = {"sizes": Constant((-1,), (1,), "int64")}
    table = replace(TABLE, inputs=("bias", "made"), steps=(step,), constants=sizes)
    weights = bound(store, network := make(), table)
    assert list(weights.inputs) == ["bias", "made"]
    assert torch.equal(weights.inputs["made"], compute(network.weight))
    assert weights.inputs["made"].is_contiguous()
    assert weights.memory_bytes == size_bytes(network) + copies * network.weight.nbytes


def test_inputs_need_no_gradient(store: EngineStore) -> None:
    assert not any(tensor.requires_grad for tensor in bound(store, make()).inputs.values())


# Networks that do not fit.


@pytest.mark.parametrize(
    ("network", "words"),
    [
        (torch.nn.Linear(4, 2), r"expects weight as \[2, 3\] in float32, found \[2, 4\] in float32"),
        (torch.nn.Linear(3, 2, dtype=torch.float64), r"expects weight as \[2, 3\] in float32, found .* in float64"),
        (torch.nn.Linear(3, 2, bias=False), r"expects bias as \[2\] in float32, found none"),
    ],
)
def test_another_network_is_refused_with_what_was_expected_and_found(
    store: EngineStore, network: torch.nn.Module, words: str
) -> None:
    weights = EngineWeights(plan_of(store), lambda: network, CPU)
    with refused(EngineError, f"The core engine {words}"):
        weights.bind()
    assert not weights.are_bound


def test_float32_is_not_narrowed(store: EngineStore) -> None:
    half = replace(TABLE, weights={name: replace(each, dtype="float16") for name, each in TABLE.weights.items()})
    with refused(EngineError, r"expects weight as \[2, 3\] in float16, found \[2, 3\] in float32"):
        bound(store, make(), half)


# Memory that moves, and that is let go.


def in_other_memory(network: torch.nn.Linear) -> None:
    network.bias.data = network.bias.data + 1


def another_parameter(network: torch.nn.Linear) -> None:
    network.bias = torch.nn.Parameter(network.bias.data + 1)


@pytest.mark.parametrize("move", [in_other_memory, another_parameter])
def test_weights_in_other_memory_are_bound_anew(store: EngineStore, move: Callable[[torch.nn.Linear], None]) -> None:
    weights = bound(store, network := make())
    assert weights.are_bound
    move(network)
    assert not weights.are_bound
    weights.bind()
    assert weights.are_bound
    assert {name: tensor.data_ptr() for name, tensor in weights.inputs.items()} == addresses(network)


def test_what_is_released_is_gone_and_is_read_again(store: EngineStore) -> None:
    made: list[weakref.ref[torch.nn.Linear]] = []

    def source() -> torch.nn.Linear:
        network = make()
        made.append(weakref.ref(network))
        return network

    weights = EngineWeights(plan_of(store), source, CPU)
    weights.bind()
    gc.collect()
    assert made[0]() is not None
    weights.release()
    gc.collect()
    assert made[0]() is None
    assert (weights.are_bound, weights.inputs) == (False, {})
    weights.bind()
    assert (weights.are_bound, len(made)) == (True, 2)


def test_a_network_goes_to_its_device_and_back(store: EngineStore) -> None:
    """`meta` stands in for a device that this machine may not have."""
    network = make()
    before = addresses(network)
    weights = EngineWeights(plan_of(store), lambda: network, META)
    weights.bind()
    assert network.weight.device == META
    weights.release()
    assert addresses(network) == before


def test_an_engine_with_weights_inside_never_loads_the_network(store: EngineStore) -> None:
    weights = EngineWeights(publish(store, toy_spec(), {}), raising(AssertionError("was loaded")), CPU)
    weights.bind()
    assert (weights.are_bound, weights.inputs, weights.memory_bytes) == (True, {}, 0)
    weights.release()
    assert weights.are_bound

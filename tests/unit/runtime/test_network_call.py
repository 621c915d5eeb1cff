"""A call read as plain data and tensors, and made again from them."""

import gc
import json
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.common.spec import EngineSpec, NetworkSpec
from i2v_tensorrt.engine_builder.backends.base import no_collection
from i2v_tensorrt.engine_builder.graph.onnx_export import dynamic_shapes, example_inputs
from i2v_tensorrt.runtime.external.network_call import (
    Call,
    SharedWeightsNetwork,
    StatelessNetwork,
    WrappedNetwork,
    input_specs,
    limits_of,
    named_arguments,
    outputs_of,
    read_call,
    result_of,
    weight_input,
)

LEFT_OUT = ("options", "control")


class Network(torch.nn.Module):
    """Takes what networks of ComfyUI take: tensors by place and by name, lists, numbers, None."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.full((1,), 2.0), requires_grad=False)

    def _forward(
        self, x: Any, t: Any, context: Any = None, y: Any = None, control: Any = None, options: Any = None, **more: Any
    ) -> torch.Tensor:
        options["seen"] = True
        found = x * self.weight + t[:, None, None, None] * more["frames"]
        for each in more["references"]:
            found = found + each.sum()
        return found if y is None else found + y["scale"][0] * y["shift"]


def arguments(size: int = 8) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    x = torch.arange(2 * 4 * size * size, dtype=torch.float32).reshape(2, 4, size, size)
    references = [torch.ones(3), torch.full((2,), 5.0)]
    more = {"y": {"scale": (0.5,), "shift": torch.ones(1)}, "frames": 3, "references": references, "control": None}
    return (x, torch.tensor([1.0, 2.0])), {**more, "options": {"patches": {}}}


def read(size: int = 8, **changes: Any) -> Call:
    args, kwargs = arguments(size)
    return calling(*args, **{**kwargs, **changes})


def calling(*args: Any, **kwargs: Any) -> Call:
    named = named_arguments(Network()._forward, args, kwargs)
    return read_call({name: value for name, value in named.items() if name not in LEFT_OUT})


def called(call: Call) -> WrappedNetwork:
    return WrappedNetwork(Network(), "_forward", call.tree, lambda: {"options": {}})


def test_the_call_made_again_gives_the_same_by_place_and_by_name() -> None:
    args, kwargs = arguments()
    call = read()
    told = [{"tensor": "references_0"}, {"tensor": "references_1"}]
    assert json.loads(call.tree)["references"] == {"list": told}, "where tensors go"
    assert sorted(call.tensors) == ["references_0", "references_1", "t", "x", "y_shift"]
    assert torch.equal(called(call)(**call.tensors), Network()._forward(*args, **kwargs))
    x, t = args
    by_name = calling(**{**kwargs, "t": t, "x": x})
    assert by_name.tree == call.tree
    assert by_name.latents is x
    assert read(references=[torch.zeros(3), torch.zeros(2)]).tree == call.tree, "a tensor's values do not count"


@pytest.mark.parametrize(
    "changes", [{"frames": 4}, {"y": None}, {"references": []}, {"y": {"scale": (0.25,), "shift": torch.ones(1)}}]
)
def test_what_is_no_tensor_tells_calls_apart(changes: dict[str, Any]) -> None:
    assert read(**changes).tree != read().tree


@pytest.mark.parametrize("value", [object(), {1: 2}, float("nan"), torch.float32, {"a b": 1}, lambda: None])
def test_what_an_engine_cannot_take_is_named(value: object) -> None:
    with pytest.raises(InputError, match="^The argument extra is a "):
        read(extra=value)


@pytest.mark.parametrize(
    ("ask", "kind", "told"),
    [
        (lambda: read(references_0=torch.ones(1)), InputError, "references_0"),
        (lambda: read_call(named_arguments(lambda a: a, (1,), {})), InputError, "Expected a tensor"),
        (lambda: named_arguments(lambda a, *more: a, (1, 2, 3), {}), InputError, "found 2 more"),
        (lambda: outputs_of({"x": torch.zeros(1)}), EngineError, "gives a dict"),
        (lambda: outputs_of((torch.zeros(1), None)), EngineError, "gives a tuple"),
    ],
    ids=["two tensors of one name", "no tensor", "arguments in excess", "a table", "a result with a hole"],
)
def test_a_call_that_no_engine_serves_is_refused(ask: Callable[[], object], kind: type[Exception], told: str) -> None:
    with pytest.raises(kind, match=told):
        ask()


def test_dimensions_of_the_latents_are_named_wherever_they_come_back() -> None:
    latents = torch.zeros(2, 16, 5, 8, 24, dtype=torch.float16)
    masks = {"mask": torch.zeros(1, 4, 5, 8, 24), "other": torch.zeros(1, 3, 2, 9, 24)}
    tensors = {"x": latents, "t": torch.zeros(2), **masks}
    specs = {spec.name: spec for spec in input_specs(Call("{}", tensors))}
    assert specs["x"].dims == (2, 16, "frames", "latent_height", "latent_width")
    assert specs["mask"].dims == (1, 4, "frames", "latent_height", "latent_width")
    assert specs["other"].dims == (1, 3, 2, 9, "latent_width")
    assert (specs["t"].dims, specs["t"].dtype, specs["x"].dtype) == ((2,), "float32", "float16")
    assert specs["t"].span == (0.0, 1000.0)
    assert specs["x"].span is None


def test_whole_numbers_are_tried_as_zeros() -> None:
    latents = torch.zeros(1, 4, 8, 8)
    _, spec = input_specs(Call("{}", {"x": latents, "index": torch.zeros(3, 3, 3, dtype=torch.int64)}))
    drawn = example_inputs(EngineSpec(network((spec,), latents), limits_of(latents), "fp32"), {})
    assert drawn["index"].dtype is torch.int64 and not drawn["index"].any()


def network(inputs: Any, latents: torch.Tensor) -> NetworkSpec:
    return NetworkSpec("toys", "Network", "", "", inputs, inputs, limits_of(latents))


def test_a_size_between_the_steps_is_kept_as_it_is() -> None:
    ranges = limits_of(torch.zeros(1, 16, 3, 8, 12)).ranges
    assert (ranges["latent_height"].min, ranges["latent_height"].max) == (8, 512)
    assert (ranges["latent_width"].min, ranges["latent_width"].max) == (12, 12)
    assert limits_of(torch.zeros(1, 64, 100)).ranges == {}


@pytest.mark.parametrize(
    ("dtype", "name"), [(torch.float32, "fp32"), (torch.float16, "fp16"), (torch.bfloat16, "bf16")]
)
def test_the_precision_is_the_latents_own(dtype: torch.dtype, name: str) -> None:
    assert Call("{}", {"x": torch.zeros(1, dtype=dtype)}).precision == name
    with pytest.raises(InputError, match="found torch.float64"):
        _ = Call("{}", {"x": torch.zeros(1, dtype=torch.float64)}).precision


def test_it_exports_with_the_names_of_its_tensors_and_a_range() -> None:
    call = read(16)
    spec = network(input_specs(call), call.latents)
    shapes = dynamic_shapes(spec.inputs, spec.limits)
    program = torch.export.export(called(call), (), dict(call.tensors), dynamic_shapes=shapes, strict=False)
    small = read(8)
    assert torch.equal(program.module()(**small.tensors), called(small)(**small.tensors))


def test_what_is_borrowed_is_never_moved_and_goes_with_the_last_who_uses_it() -> None:
    network = Network()
    borrowed = SharedWeightsNetwork(network, "_forward", read().tree, lambda: {"options": {}})
    assert borrowed.to(torch.device("meta"), torch.float16) is borrowed
    assert network.weight.device.type == "cpu" and network.weight.dtype is torch.float32
    borrowed(**read().tensors)
    gone = ref(network)
    gc.collect()
    with no_collection():
        del network, borrowed
        assert gone() is None


class Block(torch.nn.Module):
    """A block as those of transformers are called: it writes into its input, and gives two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 6)
        self.scale = torch.nn.Parameter(torch.full((1, 2, 6), 0.5))

    def forward(self, x: Any, vec: Any, mask: Any = None, options: Any = None) -> tuple[torch.Tensor, torch.Tensor]:
        options["seen"] = True
        x += vec
        return self.inner(x) * (self.scale[:, :1] + 1), x


def block_call() -> Call:
    draw = torch.Generator().manual_seed(1)
    x, vec = torch.randn(2, 5, 6, generator=draw), torch.randn(2, 1, 6, generator=draw)
    named = named_arguments(Block().forward, (x, vec), {"options": {}})
    named.pop("options")
    return read_call(named)


def stateless(call: Call) -> StatelessNetwork:
    return StatelessNetwork(Block(), call.tree, lambda: {"options": {}})


def test_a_stateless_network_takes_its_weights_with_each_call_and_holds_none() -> None:
    network, call = stateless(block_call()), block_call()
    assert list(network.parameters()) == [] and network.to("meta") is network
    for seed in (1, 2):
        torch.manual_seed(seed)
        block = Block()
        given = call.with_weights(dict(block.named_parameters()))
        assert weight_input("inner.weight") in given.weights
        found = network(**given.kept().tensors)
        expected = block(**block_call().tensors, options={})
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(found, expected, strict=True))


def test_a_stateless_network_exports_with_its_weights_as_inputs() -> None:
    call = block_call().with_weights(dict(Block().named_parameters()))
    program = torch.export.export(stateless(call), (), dict(call.kept().tensors), strict=False)
    assert not program.state_dict
    other = call.with_weights(dict(Block().named_parameters()))
    for mine, theirs in zip(program.module()(**other.kept().tensors), stateless(call)(**other.tensors), strict=True):
        assert torch.equal(mine, theirs)


def test_weights_that_come_with_a_call_are_drawn_as_weights_and_nothing_of_it_is_a_step() -> None:
    specs = {spec.name: spec for spec in input_specs(block_call().with_weights(dict(Block().named_parameters())))}
    assert {spec.scope.value for spec in specs.values()} == {"clip"}
    low, high = specs[weight_input("inner.weight")].span or (0.0, 0.0)
    assert high == -low == pytest.approx(0.5**0.5)
    assert specs[weight_input("inner.bias")].span == (-0.02, 0.02)
    assert specs["vec"].span is None


def test_inputs_are_kept_from_a_network_that_writes_into_them() -> None:
    call = block_call()
    kept, before = call.kept(), call.tensors["x"].clone()
    Block()(**call.tensors, options={})
    assert torch.equal(kept.tensors["x"], before) and not torch.equal(call.tensors["x"], before)


def test_several_results_are_numbered_and_put_together_again() -> None:
    one, two = torch.zeros(1), torch.ones(1)
    assert result_of(outputs_of(one)) is one
    assert list(outputs_of((one, two))) == ["prediction_0", "prediction_1"]
    assert result_of(outputs_of((one, two))) == (one, two)


class Joint(torch.nn.Module):
    """A block that hands all its arguments on, as SD3's does."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(6, 6)

    def forward(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self._mix(*args, **kwargs)

    def _mix(self, context: Any, x: Any, c: Any) -> torch.Tensor:
        return self.inner(x - context) + c


def test_arguments_that_have_no_names_are_handed_on_in_their_order() -> None:
    torch.manual_seed(1)
    block, (context, x, c) = Joint(), torch.randn(3, 2, 6)
    call = read_call(named_arguments(block.forward, (context, x), {"c": c}))
    assert list(call.tensors) == ["positional_0", "positional_1", "c"]
    given = call.with_weights(dict(block.named_parameters()))
    found = StatelessNetwork(Joint(), call.tree, dict)(**given.tensors)
    assert torch.equal(found, block(context, x, c=c))
    assert torch.equal(WrappedNetwork(block, "forward", call.tree, dict)(**call.tensors), found)

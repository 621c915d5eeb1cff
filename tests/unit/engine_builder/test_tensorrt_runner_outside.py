"""Every call of TensorRT's runner over an engine that is given its weights' addresses."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import pytest

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN, RTX, load_library
from i2v_tensorrt.engine_builder.backends.tensorrt.runner import TensorRTRunner
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.graph.outside_weights import (
    FILE_NAME,
    OutsideWeights,
    Step,
    Weight,
    table_to_text,
)
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import CPU, ToyNetwork, publish

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
from .test_tensorrt_runner import SCRATCH_BYTES, SMALL, SPEC, WIDE, Rig  # noqa: E402 - it needs the library

OUTSIDE = EngineSpec(replace(SPEC.network, weights_sha256=""), SPEC.profile, SPEC.precision)
SHAPE = tuple(ToyNetwork().weight.shape)
TABLE = OutsideWeights(
    {"weight": Weight(SHAPE, "float32")}, ("weight", "share"), (Step("Sigmoid", ("weight",), {}, "share"),)
)
TENSORS = ("sample", "strength", "weight", "share", "prediction")


class OutsideRig(Rig):
    """A runner over a plan that takes the network's weight, and what is computed from it."""

    def __init__(self, store: EngineStore) -> None:
        self.made: list[weakref.ref[ToyNetwork]] = []
        super().__init__(store)
        self.plan = publish(store, OUTSIDE, {PLAN: b"plan", FILE_NAME: table_to_text(TABLE).encode()})
        self.engine.num_io_tensors = len(TENSORS)
        self.engine.get_tensor_name.side_effect = TENSORS.__getitem__
        self.runner = self.another_runner()

    def another_runner(self, *, is_rtx: bool = True) -> TensorRTRunner:
        return TensorRTRunner(self.plan, OUTSIDE, self.load, CPU, replace(load_library(RTX), is_rtx=is_rtx))

    def load(self) -> ToyNetwork:
        """A network in new memory, as the source gives it."""
        network = ToyNetwork()
        self.made.append(weakref.ref(network))
        return network

    @property
    def network(self) -> ToyNetwork:
        """The network that was loaded last."""
        found = self.made[-1]()
        assert found is not None
        return found

    def move(self) -> None:
        """Gives the network's weight other memory."""
        self.network.weight.data = self.network.weight.data.clone()

    def addresses(self, name: str) -> list[int]:
        """Those that the context was given for a tensor."""
        return [address for _, found, address in self.told("set_tensor_address") if found == name]


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, store: EngineStore) -> OutsideRig:
    made = OutsideRig(store)
    made.install(monkeypatch)
    return made


def test_a_weights_address_is_given_once_a_shape(rig: OutsideRig) -> None:
    rig.run(SMALL, SMALL)
    address = rig.network.weight.data_ptr()
    assert rig.addresses("weight") == [address]
    rig.run(WIDE, WIDE, SMALL)
    assert rig.addresses("weight") == [address] * 3
    assert len(rig.told("set_optimization_profile_async")) == 2
    assert rig.addresses("share") == [rig.runner._weights.inputs["share"].data_ptr()] * 3


def test_weights_have_no_shape_to_set(rig: OutsideRig) -> None:
    """Theirs is the graph's."""
    rig.run(SMALL)
    assert {name for _, name, _ in rig.told("set_input_shape")} == {"sample", "strength"}


def test_weights_that_moved_are_given_anew_to_the_engine_that_is_there(rig: OutsideRig) -> None:
    rig.run(SMALL)
    first = rig.network.weight.data_ptr()
    rig.move()
    assert not rig.runner.is_loaded
    with pytest.raises(EngineError, match="not loaded"):
        rig.runner(example_inputs(OUTSIDE, SMALL))
    rig.run(SMALL)
    assert rig.runner.is_loaded
    assert rig.addresses("weight") == [first, rig.network.weight.data_ptr()]
    assert len(set(rig.addresses("share"))) == 2
    rig.runtime.deserialize_cuda_engine.assert_called_once()
    assert len(rig.made) == 1


def test_a_graph_is_not_replayed_over_weights_that_moved(rig: OutsideRig) -> None:
    rig.runner = rig.another_runner(is_rtx=False)
    rig.run(SMALL, SMALL, SMALL)
    assert rig.runs == (2, 2)
    rig.move()
    rig.run(SMALL)
    assert rig.runs == (3, 2)
    rig.run(SMALL, SMALL)
    assert rig.runs == (4, 4)


def test_unloading_lets_the_network_go_and_another_one_gives_its_addresses(rig: OutsideRig) -> None:
    """As where a LoRA is put on: the source has other weights from then on."""
    rig.run(SMALL)
    kept = rig.network.weight.data  # so that no other weight can have its address
    rig.runner.unload()
    gc.collect()
    assert rig.made[-1]() is None
    assert rig.runner._weights.inputs == {}
    rig.run(SMALL)
    assert rig.addresses("weight") == [kept.data_ptr(), rig.network.weight.data_ptr()]
    assert len(set(rig.addresses("weight"))) == len(rig.made) == 2
    assert rig.runtime.deserialize_cuda_engine.call_count == 2


def test_an_address_that_is_refused_is_told_and_given_again(rig: OutsideRig) -> None:
    rig.context.set_tensor_address.side_effect = lambda name, address: name != "weight"
    with pytest.raises(EngineError, match="The TensorRT engine of core could not take the address of weight: "):
        rig.run(SMALL)
    rig.context.set_tensor_address.side_effect = None
    rig.run(SMALL)
    assert rig.addresses("weight") == [rig.network.weight.data_ptr()] * 2
    assert rig.runs == (1, 0)


def test_memory_counts_the_networks_weights_and_what_is_computed_from_them(rig: OutsideRig) -> None:
    rig.run(SMALL)
    weights = 2 * rig.network.weight.nbytes
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes + SCRATCH_BYTES + weights


def test_an_engine_without_its_table_is_not_opened(rig: OutsideRig) -> None:
    (rig.plan.folder / FILE_NAME).unlink()
    with pytest.raises(EngineError, match=f"{FILE_NAME} is missing"):
        rig.runner.load()
    rig.runtime.deserialize_cuda_engine.assert_not_called()
    assert not rig.runner.is_loaded

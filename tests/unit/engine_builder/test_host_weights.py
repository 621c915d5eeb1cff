"""Networks moved to a device and back; `meta` stands in for a device that this machine may not have."""

import gc

import pytest
import torch

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.backends.host_weights import _homes, to_device, to_host
from i2v_tensorrt.runtime.external.network_call import SharedWeightsNetwork

from ...helpers.toys import CPU, toy_spec

META = torch.device("meta")


class Normed(torch.nn.Module):
    """Parameters, and buffers that the networks of a part may share."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)
        self.norm = torch.nn.BatchNorm1d(3)


class Half(torch.nn.Module):
    """One of two networks that are made from the same part."""

    def __init__(self, *layers: torch.nn.Module) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(layers)


def places(network: torch.nn.Module) -> set[str]:
    return {tensor.device.type for tensor in (*network.parameters(), *network.buffers())}


def test_what_comes_back_is_what_host_memory_still_had_and_goes_with_the_network() -> None:
    gc.collect()
    homes = len(_homes())
    network = Normed()
    before = {name: (x.data_ptr(), x.clone()) for name, x in network.state_dict().items()}
    to_device(network, META)
    assert places(network) == {"meta"}
    to_host(network)
    after = network.state_dict()
    assert {name: x.data_ptr() for name, x in after.items()} == {name: ptr for name, (ptr, _) in before.items()}
    assert all(torch.equal(after[name], values) for name, (_, values) in before.items())
    to_device(network, META)
    assert len(_homes()) > homes
    del network, after, before
    gc.collect()
    assert len(_homes()) == homes


def test_a_runner_that_shares_weights_brings_back_what_another_moved() -> None:
    shared = Normed()
    one, two = Half(shared, torch.nn.Linear(2, 2)), Half(torch.nn.Linear(2, 2), shared)
    address = shared.linear.weight.data_ptr()
    to_device(one, META)
    to_device(two, META)
    to_host(two)
    assert shared.linear.weight.data_ptr() == address
    assert places(one) == {"cpu", "meta"}
    to_host(one)
    assert places(one) == {"cpu"}


def test_tensors_that_nobody_kept_are_copied_back() -> None:
    linear = torch.nn.Linear(3, 3, device=META)
    with pytest.raises(NotImplementedError, match="meta"):  # there is nothing to copy: it was tried
        to_host(linear)


def test_a_borrowed_network_is_left_where_it_is() -> None:
    network = SharedWeightsNetwork(Normed(), "forward", "{}", dict)
    to_device(network, META)
    assert places(network) == {"cpu"}
    to_host(network)


def test_a_runner_of_which_another_took_some_weights_away_is_not_loaded() -> None:
    """Wan's decoders for the first and the later frames share 60 of 88 tensors, and not the first of them."""
    shared = torch.nn.Linear(2, 2)
    networks = [Half(torch.nn.Linear(2, 2), shared), Half(torch.nn.Linear(2, 2), shared)]
    spec = toy_spec(ShapeProfile())
    one, two = (EagerRunner(spec, lambda made=made: made, META) for made in networks)
    one.load()
    two.load()
    assert one.is_loaded
    assert two.is_loaded
    two.unload()
    assert not one.is_loaded
    one.load()
    assert one.is_loaded
    assert one.memory_bytes == 2 * 6 * 4


def test_on_a_cpu_unloading_lets_go_of_the_network() -> None:
    runner = EagerRunner(toy_spec(ShapeProfile()), lambda: torch.nn.Linear(2, 2), CPU)
    assert runner.memory_bytes == 6 * 4
    assert not runner.is_loaded
    runner.load()
    assert runner.is_loaded
    runner.unload()
    assert not runner.is_loaded

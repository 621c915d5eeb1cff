"""What is kept for a network: found again, made anew for another key, and gone with the network."""

from __future__ import annotations

import gc
import weakref

import torch
from torch import nn

from i2v_tensorrt.nodes.host.owned import Owned, state


class Made:
    pass


def test_it_is_found_again_until_the_key_is_another_one() -> None:
    kept: Owned[Made] = Owned()
    network, other = nn.Linear(2, 2), nn.Linear(2, 2)
    first = kept.get(network, "a", Made)
    assert kept.get(network, "a", Made) is first
    assert kept.get(other, "a", Made) is not first
    second = kept.get(network, "b", Made)
    assert second is not first and kept.get(network, "a", Made) is not first


def test_it_goes_with_its_network_and_before_another_is_made() -> None:
    kept: Owned[Made] = Owned()
    network = nn.Linear(2, 2)
    held = weakref.ref(kept.get(network, "a", Made))
    made = kept.get(network, "b", lambda: Made() if held() is None else None)  # type: ignore[arg-type, return-value]
    assert made is not None, "two at once"
    held = weakref.ref(made)
    del network, made
    gc.collect()
    assert held() is None


def test_a_change_in_place_is_another_state_and_a_copy_elsewhere_is_not() -> None:
    with torch.inference_mode():  # as ComfyUI's loaders make them
        layer = nn.Conv2d(3, 4, 3)
        network = nn.Sequential(layer, nn.BatchNorm2d(4))
        before = state(network)
        assert len(before) == 7 and state(network) == before
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        assert state(network) == before
        layer.weight.mul_(1.5)
        assert state(network) != before

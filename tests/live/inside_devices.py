"""Runners on two pretended GPUs in ComfyUI's memory manager: each GPU has its own room."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.model_management as memory
import torch

from i2v_tensorrt.engine_builder.build.build import quiet
from i2v_tensorrt.nodes.host.engine_sets import EngineMaker, remade
from i2v_tensorrt.nodes.host.memory import HostMemoryManager
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.dummies.wan import write_tiny_wan
from i2v_tensorrt.pipeline.models.model_networks import apart
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.devices.token_group import TokenGroup
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.tests.live.card import DEVICE, GIB, Card, CardRunner, pretended

SECOND = torch.device("cuda", 1)
OTHER_CPU = torch.device("cpu", 0)


@contextmanager
def two_cards(first: Card, second: Card) -> Iterator[None]:
    cards = {DEVICE: first, SECOND: second}

    def free(device: torch.device = DEVICE, torch_free_too: bool = False) -> Any:
        return cards[device].told(device, torch_free_too)

    changes: dict[str, Any] = {
        "get_all_torch_devices": lambda *_, **__: [DEVICE, SECOND],
        "get_total_memory": lambda device, *_, **__: cards[device].total_bytes,
        "get_free_memory": free,
    }
    with pretended(first), patch.multiple(memory, **changes):
        yield


def case_a_clip_on_two_gpus_takes_the_room_of_each(folder: Path) -> None:
    cards = Card(16 * GIB), Card(12 * GIB)
    with two_cards(*cards):
        here, there = HostMemoryManager(), HostMemoryManager(SECOND)
        core = CardRunner(cards[0], 4 * GIB)
        branch = CardRunner(cards[1], 4 * GIB, device=SECOND)
        assert here.hold(core, GIB) is None
        assert there.hold(branch, GIB) is None
        assert core.is_loaded and branch.is_loaded
        assert (here.room_bytes(), there.room_bytes()) == (16 * GIB, 12 * GIB)


def case_a_full_gpu_lets_its_own_runners_go_and_no_others(folder: Path) -> None:
    cards = Card(16 * GIB), Card(8 * GIB)
    with two_cards(*cards):
        core, old = CardRunner(cards[0], 4 * GIB), CardRunner(cards[1], 5 * GIB, device=SECOND)
        HostMemoryManager().hold(core, 0)
        HostMemoryManager(SECOND).hold(old, 0)
        branch = CardRunner(cards[1], 4 * GIB, device=SECOND)
        told = HostMemoryManager(SECOND).hold(branch, GIB)
        assert branch.is_loaded and not old.is_loaded and core.is_loaded
        assert told is not None and "let go of core" in told


def case_free_gives_both_gpus_back(folder: Path) -> None:
    cards = Card(16 * GIB), Card(16 * GIB)
    with two_cards(*cards):
        core, branch = CardRunner(cards[0], 4 * GIB), CardRunner(cards[1], 4 * GIB, device=SECOND)
        HostMemoryManager().hold(core, 0)
        HostMemoryManager(SECOND).hold(branch, 0)
        memory.unload_all_models()
        assert not core.is_loaded and not branch.is_loaded
        assert [card.free_bytes for card in cards] == [16 * GIB, 16 * GIB]


def case_a_lora_keeps_the_devices_of_the_engines(folder: Path) -> None:
    model = open_model(write_tiny_checkpoint(folder / "model"))
    engines = EngineMaker(EnginePolicy("eager"), quiet, None).of(model, OTHER_CPU)
    assert engines.second is not None and engines.second.device == OTHER_CPU
    assert engines.second.model is not engines.model, "one network is on one device at a time"
    assert engines.group is None, "only Wan's clips are shared by tokens"
    other = remade(engines, apart(model))
    assert other.second is not None and other.second.device == OTHER_CPU
    alone = remade(EngineMaker(EnginePolicy("eager"), quiet, None).of(model), apart(model))
    assert alone.second is None and alone.devices_line is None
    assert other.devices_line == f"guidance branches on {other.device} and cpu:0"


def case_a_wan_is_shared_by_tokens_too(folder: Path) -> None:
    model = open_model(write_tiny_wan(folder / "model", "wan21"))
    engines = EngineMaker(EnginePolicy("eager"), quiet, None).of(model, OTHER_CPU)
    assert isinstance(engines.group, TokenGroup)
    assert engines.group.devices == (engines.device, OTHER_CPU)
    assert engines.group.processes.pids == [], "no process is started before a call"

"""Runners in ComfyUI's memory manager: what ComfyUI walks through stays as it is, whatever is collected when."""

import gc
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.model_management as memory
import torch

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, NetworkSpec
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.nodes.host.memory import HostMemoryManager
from i2v_tensorrt.nodes.host.patcher import RunnerPatcher
from i2v_tensorrt.tests.live.card import DEVICE, GIB, Card, CardModel, CardRunner, pretended, uncollected


class Asked(Card):
    """A card on which something happens whenever ComfyUI asks what is free, or asks it in choosing what to unload."""

    def __init__(self, total_bytes: int, happens: Callable[[], object], *, in_the_walk: bool = False) -> None:
        super().__init__(total_bytes)
        self._happens, self._in_the_walk = happens, in_the_walk

    def told(self, device: object = None, torch_free_too: bool = False) -> Any:
        if not self._in_the_walk or sys._getframe(1).f_code is memory.free_memory.__code__:
            self._happens()
        return super().told(device, torch_free_too)


def abandoned(card: Card) -> None:
    """Two runners that have been used, in a ring that only Python's collector opens."""
    memory_manager = HostMemoryManager()
    runners = [CardRunner(card, GIB, name) for name in ("core", "core_2")]
    for runner in runners:
        memory_manager.hold(runner, 0)
        vars(runner)["ring"] = (memory_manager, runners)


def listed() -> list[object]:
    """The runners that ComfyUI counts among its loaded models."""
    return [entry.model.runner for entry in memory.current_loaded_models if isinstance(entry.model, RunnerPatcher)]


def case_runners_that_are_collected_while_comfyui_looks_for_room(folder: Path) -> None:
    with uncollected(), pretended(Asked(64 * GIB, gc.collect, in_the_walk=True)) as card:
        abandoned(card)
        memory_manager, runner = HostMemoryManager(), CardRunner(card, GIB)
        memory_manager.hold(runner, 0)
        assert runner.is_loaded and list(card.held) == [runner], "their memory is free when they are gone"
        another = CardRunner(card, GIB)
        memory_manager.hold(another, 0)
        assert listed() == [another, runner], "they leave the list when the pack next asks for memory"


class Collecting(CardRunner):
    """A runner after whose unloading others are collected."""

    def unload(self) -> None:
        super().unload()
        gc.collect()


def case_runners_that_are_collected_while_another_one_is_unloaded(folder: Path) -> None:
    for unload_all in (True, False):
        with uncollected(), pretended(Card(6 * GIB)) as card:
            memory_manager, runner, large = HostMemoryManager(), Collecting(card, GIB), CardRunner(card, 4 * GIB)
            memory_manager.hold(runner, 0)
            abandoned(card)
            if unload_all:
                memory.unload_all_models()
                assert memory.current_loaded_models == []
            memory_manager.hold(large, 0)
            assert list(card.held) == listed() == [large]


def case_what_is_gone_is_taken_from_the_list_before_anything_is_let_go(folder: Path) -> None:
    with uncollected(), pretended(Card(16 * GIB)) as card:
        memory_manager, encoder, core = (
            HostMemoryManager(),
            CardRunner(card, GIB, "image_encoder"),
            CardRunner(card, GIB),
        )
        for runner in (encoder, core):
            memory_manager.hold(runner, 0)
        abandoned(card)
        gc.collect()
        told = memory_manager.free_memory(16 * GIB, encoders=True)
        assert told == "Memory is over 90% full: let go of image_encoder."
        assert listed() == list(card.held) == [core]


def held_bytes() -> int:
    """What all models that are loaded say that they hold."""
    return sum(entry.model_loaded_memory() for entry in memory.current_loaded_models)


def case_a_runner_tells_what_it_holds_now(folder: Path) -> None:
    with pretended() as card:
        memory_manager, runner = HostMemoryManager(), CardRunner(card, 2 * GIB)
        memory_manager.hold(runner, 0)
        runner.size_bytes = 3 * GIB  # such as the memory of a graph, which comes with the second call
        runner.load()
        assert held_bytes() == 3 * GIB
        assert memory_manager.room_bytes() == card.total_bytes
        (entry,) = memory.current_loaded_models
        assert entry.model_memory_required(DEVICE) == 0
        runner.unload()  # another one moved the weights that they share
        assert held_bytes() == 0 and entry.model_memory() == 3 * GIB


def case_weights_of_two_runners_are_counted_once(folder: Path) -> None:
    shared, memory_manager = torch.nn.Linear(64, 64), HostMemoryManager()
    networks = [torch.nn.Sequential(shared, torch.nn.Linear(64, size)) for size in (8, 16)]
    network = NetworkSpec("toy", "core", "c" * 64, "a" * 64, (), (), ShapeProfile())
    spec, cpu = EngineSpec(network, ShapeProfile(), "fp32"), torch.device("cpu")
    opened: list[torch.nn.Module] = []
    runners = [EagerRunner(spec, lambda each=each: opened.append(each) or each, cpu) for each in networks]
    for runner in runners:
        memory_manager.hold(runner, 0)
    distinct = {tensor.data_ptr(): tensor.nbytes for each in networks for tensor in each.parameters()}
    assert held_bytes() == sum(distinct.values())
    patchers = [entry.model for entry in memory.current_loaded_models]
    memory.free_memory(1e30, cpu)
    assert memory.current_loaded_models == [] and not any(runner.is_loaded for runner in runners)
    full = [sum(tensor.nbytes for tensor in each.parameters()) for each in reversed(networks)]
    assert [patcher.model_size() for patcher in patchers] == full
    assert opened == networks, "nothing is read to be counted"


def case_a_build_finds_what_pytorch_kept_free_too(folder: Path) -> None:
    """The driver is asked what is free before a build, and knows nothing of PyTorch's cache."""
    for state in (memory.VRAMState.NORMAL_VRAM, memory.VRAMState.HIGH_VRAM):
        with pretended() as card, patch.object(memory, "vram_state", state):
            card.cached_bytes = GIB
            HostMemoryManager().clear()
            assert card.cached_bytes == 0
            card.cached_bytes = GIB
            assert HostMemoryManager().free_memory(sys.maxsize, encoders=True) is None
            assert card.cached_bytes == 0


def case_a_runner_that_is_held_already_costs_nothing(folder: Path) -> None:
    asked: list[int] = []
    with pretended(Asked(64 * GIB, lambda: asked.append(1))) as card:
        memory_manager, runner, other = HostMemoryManager(), CardRunner(card, GIB), CardModel(card, GIB)

        def costs(hold: Callable[[], object]) -> bool:
            """Whether ComfyUI was asked for memory, and had PyTorch give back what it keeps."""
            asked.clear()
            card.cached_bytes = 60 * GIB  # so much that ComfyUI would have it given back at every look
            hold()
            assert bool(asked) == (card.cached_bytes == 0)
            return bool(asked)

        assert costs(lambda: memory_manager.hold(runner, 2 * GIB))
        assert not costs(lambda: memory_manager.hold(runner, 2 * GIB))
        assert not costs(lambda: memory_manager.hold(runner, GIB))
        assert costs(lambda: memory_manager.hold(runner, 3 * GIB)), "it asks for more than it was given"
        assert not costs(lambda: memory_manager.hold(runner, 3 * GIB))
        memory.load_models_gpu([other])
        assert costs(lambda: memory_manager.hold(runner, GIB)), "something else may have taken the memory"
        assert costs(lambda: memory_manager.hold(runner, 2 * GIB)), "it was given less since"
        runner.unload()
        assert costs(lambda: memory_manager.hold(runner, 2 * GIB)) and runner.is_loaded
        assert costs(lambda: memory_manager.hold(runner, 2 * GIB, beside=[other]))
        assert not costs(lambda: memory_manager.hold(runner, 2 * GIB, beside=[other]))
        memory.unload_all_models()
        assert costs(lambda: memory_manager.hold(runner, 2 * GIB, beside=[other])) and other.is_loaded


def case_runners_that_take_turns_cost_nothing(folder: Path) -> None:
    asked: list[int] = []
    with pretended(Asked(64 * GIB, lambda: asked.append(1))) as card:
        memory_manager, other = HostMemoryManager(), CardModel(card, GIB)
        features, between, decoder = (CardRunner(card, GIB) for _ in range(3))

        def costs(runner: CardRunner) -> bool:
            asked.clear()
            memory_manager.hold(runner, 2 * GIB)
            assert runner.is_loaded
            return bool(asked)

        assert [costs(each) for each in (features, between)] == [True, True]
        assert costs(features), "the one that came after it may have taken the memory that it was given"
        assert not any(costs(each) for each in (between, features) * 3)
        assert costs(decoder)
        assert [costs(each) for each in (features, between) * 2] == [True, True, False, False]
        assert not costs(decoder), "none was loaded since"
        memory.load_models_gpu([other])
        assert [costs(each) for each in (between, features) * 2] == [True, True, False, False]
        between.unload()
        assert [costs(each) for each in (between, features) * 2] == [True, True, False, False]


def case_directml_tells_nothing_so_nothing_gives_way_before_memory_runs_out(folder: Path) -> None:
    """It always tells of the same GiB."""
    with pretended(Constant(GIB)) as card, patch.object(memory, "directml_enabled", True):
        memory_manager, encoder = HostMemoryManager(), CardRunner(card, GIB, "image_encoder")
        assert memory_manager.hold(encoder, 8 * GIB) is None
        assert (memory_manager.spare_bytes(), memory_manager.room_bytes()) == (None, None)
        assert memory_manager.free_memory(8 * GIB, encoders=True) is None and encoder.is_loaded
        assert memory_manager.free_memory(sys.maxsize, encoders=True) is not None and not encoder.is_loaded, (
            "it has run out"
        )


class Constant(Card):
    """A card of which nobody knows how much is free."""

    @property
    def free_bytes(self) -> int:
        return self.total_bytes


def case_every_flag_on_memory_holds_runners_whole_and_lets_models_go(folder: Path) -> None:
    """--lowvram, --novram, and --highvram with --gpu-only: ComfyUI takes none of them beside --cpu."""
    states = memory.VRAMState.LOW_VRAM, memory.VRAMState.NO_VRAM, memory.VRAMState.HIGH_VRAM
    for state in states:
        with pretended(Card(8 * GIB)) as card, patch.object(memory, "vram_state", state):
            manager, model = HostMemoryManager(), CardModel(card, 4 * GIB)
            encoder, core = CardRunner(card, GIB, "image_encoder"), CardRunner(card, 5 * GIB)
            memory.load_models_gpu([model])
            assert model.is_loaded
            for runner in (encoder, core):
                manager.hold(runner, 0)
                assert runner.is_loaded and card.held[runner] == runner.size_bytes, state
            assert not model.is_loaded, state
            assert card.free_bytes >= 0
            memory.load_models_gpu([model])
            assert model.is_loaded and not core.is_loaded, state
            manager.hold(core, 0)
            assert core.is_loaded, state

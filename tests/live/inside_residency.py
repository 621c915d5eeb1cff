"""Compiled models and their engines beside ComfyUI's own models on one card."""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import comfy.model_management as memory
import torch
from comfy.hooks import HookGroup, WeightHook

from i2v_tensorrt.nodes.host.memory import RESERVE_BYTES, HostMemoryManager
from i2v_tensorrt.nodes.host.model import _MemoryManager
from i2v_tensorrt.tests.live.card import GIB, Card, CardModel, CardRunner, pretended

CPU = torch.device("cpu")


def case_what_a_sampling_uses_is_there_again_after_a_build(folder: Path) -> None:
    with pretended() as card:
        sampled, control, other = (CardModel(card, size * GIB) for size in (8, 2, 1))
        memory.load_models_gpu([other])
        memory.load_models_gpu([sampled, control])
        memory_manager = _MemoryManager()
        memory_manager.patcher = sampled
        memory_manager.clear()
        assert not card.held
        memory_manager.hold(CardRunner(card, 0), 0)
        assert (sampled.is_loaded, control.is_loaded, other.is_loaded) == (True, True, False)
        assert memory.loaded_models(only_currently_used=True) == [sampled, control]


def case_what_an_interrupted_build_sent_away_stays_away(folder: Path) -> None:
    with pretended() as card:
        sampled, memory_manager = CardModel(card, 8 * GIB), _MemoryManager()
        memory.load_models_gpu([sampled])
        memory_manager.patcher = sampled
        memory_manager.clear()
        memory_manager.give_back()
        memory_manager.patcher = None
        memory_manager.hold(CardRunner(card, 0), 0)
        assert not sampled.is_loaded


class HookedModel(CardModel):
    """One with two weights, from which hooks go as from every model that is unloaded.

    ComfyUI leaves a model without hooks where they are put again on all of its weights.
    """

    def __init__(self, card: Card, size_bytes: int) -> None:
        super().__init__(card, size_bytes)
        self.weight, self.model.bias = (torch.nn.Parameter(torch.zeros(4), requires_grad=False) for _ in range(2))
        self.model.weight = self.weight

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            self.unpatch_hooks()
        super().unpatch_model(device_to, unpatch_weights)


def case_hooks_on_the_weights_are_there_again_after_a_build(folder: Path) -> None:
    with pretended() as card:
        sampled, hook = HookedModel(card, 8 * GIB), WeightHook()
        sampled.add_hook_patches(hook, {"weight": ("diff", (torch.ones(4),))})
        memory.load_models_gpu([sampled])
        hooks = HookGroup()
        hooks.add(hook)
        sampled.patch_hooks(hooks)
        memory_manager = _MemoryManager()
        memory_manager.patcher = sampled
        memory_manager.clear()
        assert not sampled.weight.any() and not sampled.is_loaded
        memory_manager.hold(CardRunner(card, 0), 0)
        assert sampled.is_loaded and sampled.current_hooks is hooks
        assert sampled.weight.tolist() == [1.0] * 4, "the rest of this call is of the same weights as its beginning"
        sampled.patch_hooks(None)
        memory_manager.clear()
        memory_manager.hold(CardRunner(card, 0), 0)
        assert sampled.is_loaded and not sampled.weight.any()


class HoldingRunner(CardRunner):
    """One of a backend whose engines hold weights of their own."""

    backend = "onnxruntime"


def case_an_engine_of_its_own_weights_sends_nothing_away_that_the_sampling_uses(folder: Path) -> None:
    with pretended(Card(14 * GIB)) as card:
        idle, sampled, control = (CardModel(card, size * GIB) for size in (1, 8, 2))
        memory.load_models_gpu([idle])
        memory.load_models_gpu([sampled, control])
        memory_manager, runner = _MemoryManager(), HoldingRunner(card, 2 * GIB)
        memory_manager.patcher = sampled
        memory_manager.hold(runner, 0)
        assert runner.is_loaded and sampled.is_loaded and control.is_loaded and not idle.is_loaded
        assert set(memory.loaded_models(only_currently_used=True)) > {sampled, control}


class StreamingRunner(CardRunner):
    """One that brings in what it has no room for."""

    streams = True

    def load(self) -> None:
        self.size_bytes = min(self.size_bytes, self.size_bytes if self.room_bytes is None else self.room_bytes)
        super().load()


def case_a_runner_that_streams_is_given_the_room_beside_its_scratch_memory(folder: Path) -> None:
    with pretended(Card(8 * GIB)) as card:
        other, memory_manager, runner = CardModel(card, 3 * GIB), HostMemoryManager(), StreamingRunner(card, 28 * GIB)
        memory.load_models_gpu([other])
        assert memory_manager.hold(runner, 2 * GIB) is None
        assert runner.room_bytes == 6 * GIB - RESERVE_BYTES, "what ComfyUI can unload is room too"
        assert runner.is_loaded and not other.is_loaded
        assert card.free_bytes >= 2 * GIB


def case_on_a_cpu_nothing_is_loaded_again(folder: Path) -> None:
    """No model ever leaves it, so that ComfyUI says of each that it is in use."""
    with pretended() as card:
        other, sampled, runner = CardModel(card, GIB), CardModel(card, GIB), HoldingRunner(card, GIB)
        other.load_device = sampled.load_device = runner.device = CPU
        memory.load_models_gpu([other])
        memory.load_models_gpu([sampled])
        memory_manager = _MemoryManager()
        memory_manager.patcher = sampled
        with patch.object(memory, "get_torch_device", lambda: CPU):
            memory_manager.hold(runner, 0)
        assert [entry.model for entry in memory.current_loaded_models][::2] == [sampled, other]


def case_memory_that_ran_out_is_asked_of_the_pack_and_of_pytorch(folder: Path) -> None:
    with pretended() as card:
        others, another = HostMemoryManager(), CardRunner(card, 3 * GIB)
        others.hold(another, 0)
        card.cached_bytes = 2 * GIB
        told = _MemoryManager().free_memory(sys.maxsize, encoders=True)
        assert told is not None and told.endswith("let go of core.")
        assert not another.is_loaded and card.cached_bytes == 0
        card.cached_bytes = 2 * GIB
        assert _MemoryManager().free_memory(sys.maxsize, encoders=True) is None
        assert card.cached_bytes == 0

"""A runner as a model of ComfyUI's memory manager, and the manager's figures of a device's memory.

ComfyUI walks through its list of loaded models by number, and removes a model from the list at the moment when it is
collected. A set of engines may die at any such moment. So a runner's patcher outlives the runner, until the pack has
ComfyUI remove it from the list; the runner's memory is free as soon as the runner is gone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any
from weakref import ref

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher

from ...engine_builder.backends.base import Runner
from ...engine_builder.backends.host_weights import tensors
from ...runtime.engines.memory_manager import Memory

ALL = 1e30
"""More bytes than any device has: ComfyUI then unloads every model that it may."""


class I2VEngine(torch.nn.Module):
    """Module that represents a runner in ComfyUI's memory manager, without keeping the runner alive."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self._runner = ref(runner)
        self.device: torch.device | None = None

    @property
    def runner(self) -> Runner | None:
        """The runner; None once it has no user any more."""
        return self._runner()


class RunnerPatcher(ModelPatcher):
    """A runner in ComfyUI's memory manager: registered, reused and evicted as every model is, all or nothing."""

    def __init__(self, runner: Runner) -> None:
        offload = torch.device("cpu")
        super().__init__(I2VEngine(runner), load_device=runner.device, offload_device=offload, size=runner.memory_bytes)
        self.scratch_bytes = 0
        """Scratch memory in bytes that the runner was last given beside its weights."""
        self._shared_bytes = 0
        """Bytes of the runner's weights that other runners had on the device when it was loaded."""

    @property
    def runner(self) -> Runner | None:
        """The runner; None once it has no user any more."""
        return self.model.runner

    def model_size(self) -> int:
        """Bytes that the runner would hold alone; once it is loaded, bytes that it holds now and no other runner does.

        While the runner is not loaded, its last known size: to count its weights it would have to read them.
        """
        runner = self.runner
        if runner is None:
            return 0
        if not runner.is_loaded:
            return self.size
        self.size = runner.memory_bytes
        return self.size - self._shared_bytes

    def loaded_size(self) -> int:
        runner = self.runner
        return self.model_size() if runner is not None and runner.is_loaded else 0

    def load(self, device_to: Any = None, *_args: Any, **_kwargs: Any) -> None:
        runner = self.runner
        if runner is None:
            return
        runner.load()
        others = [each.runner for each in _PATCHERS if each is not self]
        held = set[int]().union(*(_blocks(each) for each in others if each is not None and each.is_loaded))
        self._shared_bytes = sum(size for address, size in _blocks(runner).items() if address in held)
        self.model.model_loaded_weight_memory = self.model_size()
        self.model.model_lowvram = False
        self.model.device = self.load_device
        self.model.current_weight_patches_uuid = self.patches_uuid

    def partially_unload(self, *_args: Any, **_kwargs: Any) -> int:
        return 0

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        runner = self.runner
        if unpatch_weights:
            if runner is not None:
                runner.unload()
            self.model.model_loaded_weight_memory = 0
            self.model.device = self.offload_device
            self.model.current_weight_patches_uuid = None


_PATCHERS: list[RunnerPatcher] = []
"""Patchers of all runners, and of some that are gone."""


def _blocks(runner: Runner) -> dict[int, int]:
    """The bytes of each weight that the runner has on its device, by address: runners of one part share them."""
    networks = [value for value in vars(runner).values() if isinstance(value, torch.nn.Module)]
    held = (tensor for each in networks for tensor in tensors(each))
    return {tensor.data_ptr(): tensor.nbytes for tensor in held if tensor.device == runner.device}


def patcher_of(runner: Runner) -> RunnerPatcher:
    """The runner's one patcher. Not to be called while ComfyUI walks through its list: dead patchers are removed."""
    if any(patcher.runner is None for patcher in _PATCHERS):
        unload(lambda _: False)
    known = next((patcher for patcher in _PATCHERS if patcher.runner is runner), None)
    if known is None:
        known = RunnerPatcher(runner)
        _PATCHERS.append(known)
    return known


def are_settled(models: Sequence[ModelPatcher], settled: Collection[ModelPatcher]) -> bool:
    """Whether these models are loaded and among the settled, after any of which ComfyUI has loaded no other model."""
    listed = [entry.model for entry in memory.current_loaded_models]
    known = [model in settled for model in listed]
    return all(model in settled and model in listed for model in models) and all(known[: known.count(True)])


def unload(chosen: Callable[[Runner], bool]) -> list[str]:
    """Has ComfyUI unload the chosen runners, and forget dead ones; returns the components of the unloaded runners."""
    dead = [patcher for patcher in _PATCHERS if patcher.runner is None]
    going = [*dead, *(each for each in _PATCHERS if each.runner is not None and chosen(each.runner))]
    kept = [entry for entry in memory.current_loaded_models if entry.model not in going]
    listed = [entry.model for entry in memory.current_loaded_models]
    found = [each.runner for each in going if each in listed]
    for device in {patcher.load_device for patcher in going if patcher in listed}:
        memory.free_memory(ALL, device, kept)
    _PATCHERS[:] = [patcher for patcher in _PATCHERS if patcher not in dead]
    return [runner.spec.network.component for runner in found if runner is not None]


def memory_of(device: torch.device) -> Memory:
    """The device's memory, as ComfyUI sees it; unlimited for DirectML, of which ComfyUI always reports the same."""
    if memory.directml_enabled:
        return Memory(0, lambda: sys.maxsize - 1)
    return Memory(int(memory.get_total_memory(device)), lambda: int(memory.get_free_memory(device)))


def loaded_bytes(device: torch.device) -> int:
    """Bytes that all models hold on the device, ComfyUI's own too."""
    models = [entry.model for entry in memory.current_loaded_models if entry.model is not None]
    return sum(model.loaded_size() for model in models if model.load_device == device)


def empty_cache() -> str:
    """Lets others than PyTorch have the memory that it keeps for its next tensors, which counts as free."""
    memory.soft_empty_cache()
    return ""

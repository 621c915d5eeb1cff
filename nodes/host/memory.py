"""The device that ComfyUI computes on, and its memory manager: who is loaded, who leaves."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakSet

import comfy.model_management as memory
import torch
from comfy.model_patcher import ModelPatcher

from ...engine_builder.backends.base import Runner
from ...engine_builder.backends.registry import AUTO, choose_backend
from ...runtime.engines.memory_manager import Eviction, evict, is_encoder
from .folders import conditioning_cache, result_cache
from .patcher import RunnerPatcher, are_settled, empty_cache, loaded_bytes, memory_of, patcher_of, unload

RESERVE_BYTES = 256 << 20
"""Left free beside a runner that streams its weights, for the tensors of a step."""


class HostMemoryManager:
    """Loading and eviction by ComfyUI's memory manager, on the device that ComfyUI computes on or on another one."""

    def __init__(self, on: torch.device | None = None) -> None:
        self._on = on
        self._patchers: list[RunnerPatcher] = []
        self._settled: WeakSet[ModelPatcher] = WeakSet()
        """Models for each of which room was made after the last of them had been loaded."""

    def hold(self, runner: Runner, scratch_bytes: int, beside: Sequence[ModelPatcher] = ()) -> str | None:
        """Makes room for the runner and its scratch memory, evicting models that ComfyUI can spare, and loads it.

        `beside` are models that are in use and stay. ComfyUI is not called where nothing was loaded since it made room
        for the runner and no less scratch memory: it would have the device wait, and PyTorch's memory given back.
        """
        patcher = patcher_of(runner)
        if patcher not in self._patchers:
            self._patchers.append(patcher)
        models = [*beside, patcher]
        if runner.is_loaded and scratch_bytes <= patcher.scratch_bytes and are_settled(models, self._settled):
            return None
        needed_bytes = scratch_bytes + (0 if runner.is_loaded else patcher.model_size())
        told = [self.free_memory(needed_bytes, encoders=True, keep=runner)]
        there, name = self._loaded(), runner.spec.network.component
        room_bytes = self.room_bytes()
        if runner.streams and not runner.is_loaded:
            runner.room_bytes = None if room_bytes is None else max(room_bytes - scratch_bytes - RESERVE_BYTES, 0)
        elif room_bytes is not None and room_bytes < needed_bytes:
            told.append(f"Memory may not do for {name}, whose weights are held whole and not streamed.")
        if not (runner.is_loaded and are_settled([], self._settled)):
            self._settled.clear()
        memory.load_models_gpu(models, memory_required=scratch_bytes)
        self._settled.update(models)
        patcher.scratch_bytes = scratch_bytes
        if not runner.is_loaded:  # its weights were moved by a runner that shares them
            patcher.load()
        gone = [name for name in there if name not in self._loaded()]
        if gone and not memory.DISABLE_SMART_MEMORY:  # which has every model leave after its work
            told.append(f"Made room for {name}: {', '.join(gone)} left the device.")
        return " ".join(filter(None, told)) or None

    def free_memory(self, needed_bytes: int, *, encoders: bool, keep: Runner | None = None) -> str | None:
        """Frees the pack's own memory: its caches, runners of other models, then this model's encoders."""

        def idle_encoders() -> str:
            return self._let_go(lambda runner, mine: mine and is_encoder(runner) and runner is not keep)

        evictions: list[Eviction] = [_forget_kept, lambda: self._let_go(lambda _, mine: not mine)]
        evictions += [idle_encoders, empty_cache] if encoders else [empty_cache]
        return evict(memory_of(self._device), needed_bytes, evictions)

    def _let_go(self, chosen: Callable[[Runner, bool], bool]) -> str:
        """Unloads the pack's chosen runners on this device, each shown with whether it is of this model; names them."""
        mine, here = [patcher.runner for patcher in self._patchers], self._device
        return ", ".join(unload(lambda runner: runner.device == here and chosen(runner, runner in mine)))

    def spare_bytes(self) -> int | None:
        return None if memory.directml_enabled else memory_of(self._device).spare_bytes()

    def room_bytes(self) -> int | None:
        """Free bytes, and bytes of the models that ComfyUI could unload; None with DirectML."""
        return None if memory.directml_enabled else free_bytes(self._device) + loaded_bytes(self._device)

    @property
    def _device(self) -> torch.device:
        return self._on or device()

    def host_bytes(self) -> int:
        return int(memory.get_free_memory(torch.device("cpu")))

    def _loaded(self) -> list[str]:
        runners = [patcher.runner for patcher in self._patchers]
        return [runner.spec.network.component for runner in runners if runner is not None and runner.is_loaded]

    def clear(self) -> None:
        """Unloads every model on a GPU, where the child that builds needs the room."""
        if device().type != "cpu":
            free_models()


def _forget_kept() -> str:
    """Drops the caches' entries in memory, on a CPU, where they share the device's memory."""
    caches = (conditioning_cache(), result_cache()) if device().type == "cpu" else ()
    return "what the caches keep in memory" if sum([cache.clear_memory() for cache in caches]) else ""


def free_models() -> None:
    """Takes every model off the device, ComfyUI's own too, for a build or a measurement that wants it free."""
    memory.unload_all_models()
    empty_cache()


def device() -> torch.device:
    """The device that ComfyUI computes on, with its index."""
    return memory.get_torch_device()


def fitting_precision(name: str) -> str:
    """The precision of that name; for `auto` fp32 on GPUs that ComfyUI knows to be wrong or slow in fp16."""
    is_unfit = name == AUTO and device().type == "cuda" and not memory.should_use_fp16(device())
    return "fp32" if is_unfit else name


def check_backend(name: Any) -> None:
    """Raises an I2VError, with the line to install it, when the backend does not serve `device()`."""
    choose_backend(str(name), device())


def free_bytes(on: torch.device | None = None) -> int:
    """Memory that a computation on a device, `device()` unless another is given, could take now."""
    return int(memory.get_free_memory(on or device()))

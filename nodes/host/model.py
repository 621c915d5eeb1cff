"""Engines inside ComfyUI's own MODEL: an engine replaces a call of its network where that changes no result.

The engine is called in the innermost of ComfyUI's wrappers around a diffusion model: guidance, samplers, previews,
caches and everything else that wraps the network stay outside and work as always. Every call is checked for additions
inside the network (patches, controls, hooks); with any of them the network itself runs.

The weights stay ComfyUI's: loaded, patched, moved and freed by its memory manager. An engine is bound to them while
a sampler runs and releases them at its end, so that all that the manager frees between two runs is free. Where ComfyUI
brings weights in as they are used, a sampling that has room for them runs over a copy that is loaded whole. Where
none of this serves, as with quantized weights, the network runs as it is and its repeated blocks by engines.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management as memory
import comfy.sampler_helpers
import folder_paths
import torch
from comfy.hooks import HookGroup
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP

from ...common.errors import EngineError, InputError
from ...engine_builder.backends.base import Runner
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.registry import choose_backend
from ...engine_builder.graph.repeated_blocks import repeated_blocks
from ...runtime.engines.memory_manager import LoadInPlace
from ...runtime.engines.policy import EnginePolicy
from ...runtime.external.compiled_network import CompiledNetwork, Tally
from ...runtime.external.network_call import Call, named_arguments, read_call
from .block_engines import BlockEngines
from .block_network import BlockNetwork
from .folders import engine_store
from .idle import idle_builds
from .memory import HostMemoryManager, device
from .network import METHOD, OPTIONS, CoreNetwork
from .patcher import RunnerPatcher
from .ui import say, sentences, tell_build
from .unsupported_reasons import (
    Layers,
    compiled_elsewhere,
    is_copy,
    is_dynamic,
    layers_of,
    no_way,
    other_network,
    unsupported_reasons,
    unsupported_weights,
)

log = logging.getLogger(__name__)

KEY = "i2v_tensorrt"
CONTROL = "control"
_WHOLE: WeakKeyDictionary[torch.nn.Module, ModelPatcher] = WeakKeyDictionary()
"""Wholly loaded copy of each model with dynamic weights, as long as that model lives: no weight is read twice."""


class _MemoryManager(LoadInPlace):
    """The weights that engines borrow are in place already; an engine that holds its own asks for room."""

    def __init__(self) -> None:
        self.patcher: ModelPatcher | None = None
        self.scratch_bytes = 0
        """Bytes that a call of the patcher's model needs beside the weights."""
        self._host = HostMemoryManager()
        self._sent_away: list[tuple[ModelPatcher, HookGroup | None]] = []
        """Models that the sampling was using when a build needed the room, and the hooks on their weights."""
        self._borrowing: dict[Runner, None] = {}

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        self._restore()
        if runner.backend == EagerBackend.name:
            return None  # the network itself
        if runner.spec.holds_weights:
            return self._host.hold(runner, scratch_bytes, beside=self._in_use())
        if self.patcher is not None and not runner.is_loaded:
            for reason in unsupported_weights(layers_of(self.patcher), runner.device):
                raise EngineError(reason)  # after a build the weights are loaded again, and may find less room
        runner.load()
        self._borrowing[runner] = None
        return None

    def give_back(self) -> None:
        """Releases borrowed weights; engines that hold their own stay until the memory manager evicts them."""
        self._sent_away = []
        while self._borrowing:
            self._borrowing.popitem()[0].unload()

    def free_memory(self, needed_bytes: int, *, encoders: bool) -> str | None:
        return self._host.free_memory(needed_bytes, encoders=encoders)

    def room_bytes(self) -> int | None:
        return self._host.room_bytes()

    def host_bytes(self) -> int | None:
        return self._host.host_bytes()

    def clear(self) -> None:
        if device().type != "cpu":
            self._sent_away = [(model, model.current_hooks) for model in self._in_use()]
            self._host.clear()

    def _restore(self) -> None:
        """Loads the models again that were sent away for a build, with the hooks that they lost as they left."""
        sent_away, self._sent_away = self._sent_away, []
        if not sent_away:
            return
        memory.load_models_gpu([model for model, _ in sent_away], memory_required=self.scratch_bytes)
        for model, hooks in sent_away:
            if hooks is not None:
                model.patch_hooks(hooks)

    def _in_use(self) -> list[ModelPatcher]:
        """The sampled model, and models that the sampling has loaded beside it, such as ControlNets; no runners."""
        sampled = [] if self.patcher is None else [self.patcher]
        card, used = device(), memory.loaded_models(only_currently_used=True)
        others = [] if card.type == "cpu" else [each for each in used if each is not None and each.load_device == card]
        return list(dict.fromkeys([*sampled, *(each for each in others if not isinstance(each, RunnerPatcher))]))


class _BlockMemoryManager(_MemoryManager):
    """Engines of blocks are given the weights with each call, wherever they are, and hold none."""

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        self._restore()
        runner.load()
        return None


class CompiledModel:
    """Wrapper around the network of a MODEL and its clones; shows the result of each run on the node `node_id`."""

    def __init__(self, node_id: str | None, policy: EnginePolicy) -> None:
        self._node_id, self._policy = node_id, policy
        self._patcher: ModelPatcher | None = None
        self._memory_manager, self._block_memory = _MemoryManager(), _BlockMemoryManager()
        self._blocks = BlockEngines(lambda owner: self._compiled(owner, self._block_memory))
        self._layers: Layers = []
        self._network: tuple[CoreNetwork, CompiledNetwork] | None = None
        self._lock = Lock()
        self._refused: Counter[str] = Counter()
        """Number of this run's calls that the network itself took, by the reason."""
        self._stays_dynamic: str | None = None
        """Reason why the weights of this run are not loaded whole."""

    def forecast(self, model: ModelPatcher) -> str:
        """Line on the expected use of engines for the model, before any run."""
        network = f"{type(model.model).__name__}, {_name(model)}"
        other = compiled_elsewhere(model)
        if other is not None:
            return f"{network} runs as it is: {other}"
        try:
            self._check(model, 0)
        except InputError as error:
            way = "block by block" if repeated_blocks(model.model.diffusion_model) else "as it is"
            return f"{network} runs {way}: {error}"
        backend = choose_backend(self._policy.backend, model.load_device)
        sizes = "one engine for each size" if self._policy.shapes == "exact" else "an engine for many sizes"
        return f"{network}: {sizes}, {backend.name} on {model.load_device}"

    def attached_to(self, model: ModelPatcher) -> ModelPatcher:
        """A clone of the model with the engines in it; the model stays as it is."""
        clone = model.clone()
        for kind, wrapper in (
            (WrappersMP.DIFFUSION_MODEL, self),
            (WrappersMP.APPLY_MODEL, self._apply),
            (WrappersMP.OUTER_SAMPLE, self._sample),
        ):
            clone.remove_wrappers_with_key(kind, KEY)
            clone.add_wrapper_with_key(kind, KEY, wrapper)
        for kind, callback in ((CallbacksMP.ON_PRE_RUN, self._begin), (CallbacksMP.ON_CLEANUP, self._end)):
            clone.remove_callbacks_with_key(kind, KEY)
            clone.add_callback_with_key(kind, KEY, callback)
        return clone

    def __call__(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """The wrapper of a call: runs the later wrappers, with an engine in the network's place.

        Where `torch.compile` reads the call it is no wrapper at all: there is nothing in it to compile.
        """
        if torch.compiler.is_compiling():
            return executor(*args, **kwargs)
        rest = executor.wrappers[executor.idx + 1 :]

        def network(*args: Any, **kwargs: Any) -> Any:
            return self._run(executor, args, kwargs)

        return type(executor)(network, executor.class_obj, rest, 0).execute(*args, **kwargs)

    def _apply(self, executor: Any, *args: Any, **kwargs: Any) -> Any:
        """The wrapper of a model's call, for a network that ComfyUI gives no way to wrap: its blocks run by engines."""
        network = executor.class_obj.diffusion_model
        other = None if self._patcher is None else compiled_elsewhere(self._patcher)
        if other is not None:
            with self._lock:
                self._refused[other] += 1
            return executor(*args, **kwargs)
        if hasattr(network, METHOD):
            return executor(*args, **kwargs)
        return self._without_engine(network, no_way(network), lambda: executor(*args, **kwargs))

    def _sample(self, executor: Any, noise: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """The wrapper around a sampling: over weights that are loaded whole, where that costs no speed."""
        guider = executor.class_obj
        model: ModelPatcher = guider.model_patcher
        self._stays_dynamic = None
        if is_dynamic(model):
            try:
                _, step_bytes = comfy.sampler_helpers.estimate_memory(model, noise.shape, guider.conds)
                self._check(model, int(step_bytes))
                guider.model_patcher = _loaded_whole(model)
            except InputError as error:
                self._stays_dynamic = str(error)
        try:
            return executor(noise, *args, **kwargs)
        finally:
            guider.model_patcher = model

    def _check(self, model: ModelPatcher, step_bytes: int) -> None:
        """Raises InputError for a network that has no engines, or that does not fit whole beside such a step."""
        if not hasattr(model.model.diffusion_model, METHOD):
            raise InputError(no_way(model.model.diffusion_model))
        _core_network(model).check()
        if not is_dynamic(model):
            return
        backend = choose_backend(self._policy.backend, model.load_device)
        copies = 2 if self._policy.holds_weights(backend) else 1
        weights_bytes = copies * sum(weight.numel() * dtype.itemsize for *_, weight, dtype in _weights_of(model.model))
        step_bytes = int(max(memory.minimum_inference_memory(), step_bytes + memory.extra_reserved_memory()))
        what = f"{weights_bytes / 2**30:.2f} GiB of weights and {step_bytes / 2**30:.2f} GiB for a step"
        _check_room(what, weights_bytes + step_bytes, self._memory_manager.room_bytes())
        if model.model not in _WHOLE:
            read_bytes, host_bytes = model.model_size(), self._memory_manager.host_bytes()
            _check_room(f"{read_bytes / 2**30:.2f} GiB of weights on the host", read_bytes, host_bytes)

    def _run(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        def original() -> Any:
            return executor.original(*args, **kwargs)

        try:
            patcher, call = self._call(executor, args, kwargs)
            core, compiled = self._engines(patcher)
        except InputError as error:
            return self._without_engine(executor.class_obj, str(error), original)
        failure = compiled.failure(call)
        if failure is not None:
            return self._without_engine(executor.class_obj, failure, original)
        core.weights = patcher.patches_uuid
        self._memory_manager.scratch_bytes = int(patcher.model.memory_required(call.latents.shape))
        with sentences():
            return compiled.run(call, original)

    def _without_engine(self, network: torch.nn.Module, reason: str, original: Callable[[], Any]) -> Any:
        """The call by the network itself, with engines for its blocks where it has repeated ones."""
        patcher = self._patcher
        if patcher is not None and patcher.model.diffusion_model is network:
            with sentences():
                done, result = self._blocks.run(patcher, reason, original)
            if done:
                return result
        with self._lock:  # MultiGPU CFG Split has a thread for each device
            self._refused[reason] += 1
        return original()

    def _call(self, executor: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ModelPatcher, Call]:
        """The call and its model; raises InputError where an engine would not give the network's result."""
        patcher = self._patcher
        if patcher is None or patcher.model.diffusion_model is not executor.class_obj:
            raise InputError(other_network(patcher))
        if self._stays_dynamic is not None:
            raise InputError(self._stays_dynamic)
        if getattr(executor.original, "__name__", "") != METHOD:
            raise InputError(f"Expected the network's own {METHOD}, found another function in its place.")
        arguments = named_arguments(executor.original, args, kwargs)
        options, control = arguments.pop(OPTIONS, None), arguments.pop(CONTROL, None)
        call = read_call(arguments)
        for reason in unsupported_reasons(patcher, self._layers, options or {}, control, call.latents.device):
            raise InputError(reason)
        return patcher, call

    def _engines(self, patcher: ModelPatcher) -> tuple[CoreNetwork, CompiledNetwork]:
        """The engines of the model's network; raises InputError for a network that cannot have any.

        A model that was loaded anew has another network: engines of the earlier one are dropped.
        """
        if self._network is None or self._network[0].network is not patcher.model.diffusion_model:
            if self._network is not None:
                self._network[1].unload()
                self._network = None
            core = _core_network(patcher)
            self._network = core, self._compiled(core, self._memory_manager)
        self._network[0].check()
        return self._network

    def _compiled(self, owner: CoreNetwork | BlockNetwork, memory_manager: _MemoryManager) -> CompiledNetwork:
        return CompiledNetwork(owner, engine_store(), self._policy, memory_manager, tell_build, idle_builds())

    def _begin(self, patcher: ModelPatcher) -> None:
        if is_copy(patcher):
            return
        self._patcher = self._memory_manager.patcher = self._block_memory.patcher = patcher
        self._layers = layers_of(patcher)  # to look for them takes longer than to look at them, at every call
        self._refused.clear()
        self._blocks.begin()

    def _end(self, patcher: ModelPatcher) -> None:
        """Ends a run, finished or not: releases all weights, and shows the run's lines on the node."""
        if is_copy(patcher):
            return
        self._patcher = self._memory_manager.patcher = self._block_memory.patcher = None
        self._layers = []
        self._memory_manager.give_back()
        if self._network is not None:
            self._network[0].clean()
        lines = self._told() or [f"The network runs as it is: {no_way(patcher.model.diffusion_model)}"]
        for reason in self._refused:
            log.warning("%s runs as it is: %s", _name(patcher), reason)
        say(self._node_id, "\n".join(lines))

    def _told(self) -> list[str]:
        """Lines on the run's calls, by engine or network, and the reasons; empty without calls."""
        tally, notes, backends = Tally(), [], []
        if self._network is not None:
            compiled = self._network[1]
            tally, compiled.tally = compiled.tally, tally
            notes, backends = compiled.take_notes(), list(compiled.backends())
        tally.original += sum(self._refused.values())
        lines = [_line(tally, backends)] if tally.calls else []
        lines += [f"The network runs as it is: {reason}" for reason in self._refused]
        return [*lines, *notes, *self._blocks.take_told()]


def _core_network(patcher: ModelPatcher) -> CoreNetwork:
    return CoreNetwork(patcher.model, Path(folder_paths.get_temp_directory()))


def _check_room(what: str, needed_bytes: int, found_bytes: int | None) -> None:
    """Raises InputError where there is too little room for weights that are loaded whole."""
    if found_bytes is not None and needed_bytes > found_bytes:
        found = f"found {found_bytes / 2**30:.2f} GiB"
        raise InputError(f"Expected room for {what}, {found}: ComfyUI brings the weights in as they are used.")


def _loaded_whole(model: ModelPatcher) -> ModelPatcher:
    """A clone over weights that are loaded whole, as ComfyUI's own compiling node asks for them.

    Raises InputError where the model's loader gives no way to read them again.
    """
    whole = _WHOLE.get(model.model)
    if whole is None:
        try:
            read = model.clone(disable_dynamic=True)
        except RuntimeError as error:
            raise InputError(f"Expected a loader that can load the weights whole, found another: {error}") from error
        for layer, name, weight, dtype in _weights_of(read.model):
            if weight.dtype != dtype:
                setattr(layer, name, torch.nn.Parameter(weight.to(dtype), requires_grad=False))
        whole = _WHOLE[model.model] = ModelPatcher(read.model, read.load_device, read.offload_device)
    clone = model.clone(disable_dynamic=True, model_override=whole.get_clone_model_override())
    clone.parent = whole  # replaces the clone in ComfyUI's list of loaded models when the clone is gone
    clone.size = whole.model_size()
    return clone


def _weights_of(network: torch.nn.Module) -> Iterator[tuple[torch.nn.Module, str, torch.Tensor, torch.dtype]]:
    """The layer of each weight, its name there, the weight, and the precision that the layer was made for.

    Where ComfyUI can bring weights in as they are used, its layers keep the file's precision, and the cast
    comes with each use: weights that are loaded whole would keep the file's precision.
    """
    for layer in network.modules():
        for name, weight in list(layer.named_parameters(recurse=False)):
            if type(weight.data) is torch.Tensor:  # others are quantized
                yield layer, name, weight, getattr(layer, f"{name}_comfy_model_dtype", None) or weight.dtype


def _line(tally: Tally, backends: list[str]) -> str:
    """A run's calls in numbers."""
    parts: list[str] = []
    if tally.engine + tally.compared:
        parts.append(f"{tally.engine} of {tally.calls} calls by the {' and '.join(backends)} engine")
    if tally.compared:
        parts.append(f"{tally.compared} by both, to compare them")
    if tally.original:
        parts.append(f"{tally.original} of {tally.calls} calls by the network as it is")
    return ", ".join(parts)


def _name(patcher: ModelPatcher) -> str:
    return type(patcher.model.diffusion_model).__name__

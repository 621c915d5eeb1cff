"""A clip whose tokens are shared by several devices, each in a process of its own that holds all weights.

The processes keep their weights from clip to clip, as runners do: for the host's memory manager each denoiser is one
runner on the first device.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import ClassVar

import torch

from ...common.errors import EngineError, InputError, MissingEngineError
from ...common.shapes import ShapeProfile
from ...common.spec import EngineSpec
from ...engine_builder.backends.base import Runner
from ...pipeline.models.checkpoints.file_digests import TABLE
from ..engines import messages
from ..engines.engine_set import Engines, EngineSet
from .rank import Start
from .rank_processes import WORKER, Patience, RankProcesses
from .sliced_networks import SlicedNetworks

BACKENDS = {"cuda": "nccl", "cpu": "gloo"}
"""Of torch.distributed, by the devices' type."""


def unserved(engines: EngineSet, count: int) -> str | None:
    """Reason why so many devices cannot share the tokens of a model's clips; None where they can."""
    import torch.distributed as dist

    try:
        SlicedNetworks.of(engines.model)
    except InputError as error:
        return str(error)
    backend = BACKENDS.get(engines.device.type)
    if backend is None or os.name != "posix" or not dist.is_available():
        return f"Tokens are shared on Linux by CUDA GPUs, found {engines.device.type} on {platform.system()}."
    if backend == "nccl" and not dist.is_nccl_available():
        return "Tokens are shared by NCCL, which this PyTorch lacks."
    return None if count > 1 else f"Expected several devices, found {count}."


def nothing() -> None:
    """Lets every interruption wait until the next step."""


class TokenGroup:
    """The devices that share the tokens of a model's clips; their processes are started by the first call.

    `poll` is called while they compute, and may raise to interrupt: they are then ended. `engines` are those of the
    first device, whose model, store, policy and memory manager serve here too.
    """

    def __init__(
        self,
        engines: EngineSet,
        devices: Sequence[torch.device],
        poll: Callable[[], None] = nothing,
        patience: Patience | None = None,
        worker: Path = WORKER,
    ) -> None:
        self._model, self._store, self._policy = engines.model, engines.store, engines.policy
        self.devices, self.memory_manager = tuple(devices), engines.memory_manager
        self.networks = SlicedNetworks.of(engines.model)
        self._built = Engines(
            self.networks,
            engines.store,
            engines.policy,
            engines.device,
            engines.memory_manager,
            engines.report,
            engines.later,
        )
        self.processes = RankProcesses(patience or Patience(), poll, worker)
        self.sent: dict[str, torch.Tensor] = {}
        """The inputs that the processes have from their last call."""
        self._runners: dict[str, GroupRunner] = {}
        self._generation = self._built.missing.generation

    def serves(self, component: str, sizes: Mapping[str, int]) -> bool:
        """Whether there is a token for each device."""
        return component in self.networks.denoisers and self.networks.tokens(component, sizes) >= len(self.devices)

    def runner(self, component: str, sizes: Mapping[str, int]) -> Runner:
        """The loaded runner of a denoiser; its engine is built first where the policy is to build it.

        Raises EngineError, MissingEngineError when there is none and the policy is to stop, and OutOfMemoryError.
        """
        if component not in self._runners:
            spec = self.networks.components[component].spec
            precision = self._built.catalog.run_precision(component)
            limits = EngineSpec(spec, ShapeProfile(), precision)
            bytes_each = self._model.size_bytes(component, precision)
            self._runners[component] = GroupRunner(limits, self.devices[0], self, bytes_each)
        runner = self._runners[component]
        if self._generation != self._built.missing.generation:
            self.unload()  # an engine may have come, which the processes did not find
        self._generation = self._built.missing.generation
        if not runner.is_loaded:
            self._built.prepare(sizes, (component,))
            catalog = self._built.catalog
            if self._built.on_missing == "stop" and catalog.fitting(component, sizes) is None:
                stored = catalog.stored(component)
                raise MissingEngineError(messages.missing(component, sizes, stored, self._store.root))
        runner.sizes = dict(sizes)
        scratch_bytes = self._model.scratch_bytes(component, sizes, runner.spec.precision)
        note = self.memory_manager.hold(runner, scratch_bytes)
        self._built.note(note)
        return runner

    def starts(self, meeting: str) -> list[Start]:
        """First messages of the processes, which meet at that file."""
        arguments = self._model.source(self._model.denoiser, self._built.precision).arguments
        policy = replace(self._policy, on_missing="eager")  # which are built by the host alone
        return [
            Start(
                rank=rank,
                count=len(self.devices),
                device=str(device),
                backend=BACKENDS[device.type],
                meeting=meeting,
                timeout_s=2 * Patience().load_s,
                folder=arguments["folder"],
                adapters=json.loads(arguments["adapters"]),
                store=str(self._store.root),
                policy=asdict(policy),
                digests=TABLE.known,
            )
            for rank, device in enumerate(self.devices)
        ]

    def describe(self, component: str) -> str | None:
        """Backend, precision and devices of a denoiser that the processes have run; None for another one."""
        runner = self._runners.get(component)
        return None if runner is None or not runner.told else f"{runner.told} and {len(self.devices) - 1} more"

    def take_notes(self) -> list[str]:
        """Sentences for the user since the last call."""
        return self._built.take_notes()

    def unload(self) -> None:
        """Ends the processes, and with them gives back the memory of all devices."""
        self.processes.end()
        self.sent = {}
        for runner in self._runners.values():
            runner.forget()


class GroupRunner(Runner):
    """A denoiser in the processes of a group."""

    backend: ClassVar[str] = "group"

    def __init__(self, spec: EngineSpec, device: torch.device, group: TokenGroup, bytes_each: int) -> None:
        super().__init__(spec, device)
        self._group, self._bytes = group, bytes_each
        self._loaded = False
        self.sizes: dict[str, int] = {}
        """Sizes of the next call, for which the processes choose an engine when they load."""
        self.told = ""
        """Backend, precision and device, as the first process says."""

    @property
    def is_loaded(self) -> bool:
        return self._loaded and self._group.processes.are_alive

    @property
    def memory_bytes(self) -> int:
        return self._bytes

    def __call__(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        death = self._group.processes.death
        if death is not None:  # between two calls
            self._group.unload()
            raise EngineError(death)
        return super().__call__(inputs)

    def load(self) -> None:
        if self.is_loaded:
            return
        processes = self._group.processes
        if not processes.are_alive:
            self._group.unload()
            processes.start(self._group.starts)
        component = self.spec.network.component
        data, _ = processes.ask({"load": component, "sizes": self.sizes})
        self._loaded, self.told, self._bytes = True, data["backend"], data["bytes"]

    def unload(self) -> None:
        self._group.unload()

    def forget(self) -> None:
        """Knows that no process holds the denoiser."""
        self._loaded, self.told = False, ""

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        here = {name: tensor.cpu().contiguous() for name, tensor in inputs.items()}
        news = {name: tensor for name, tensor in here.items() if not self._knows(name, tensor)}
        self._group.sent = here
        _, outputs = self._group.processes.ask({"call": self.spec.network.component}, news)
        return {name: tensor.to(self.device) for name, tensor in outputs.items()}

    def _knows(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether the processes still have the input from the last call."""
        last = self._group.sent.get(name)
        return last is not None and last.shape == tensor.shape and torch.equal(last, tensor)

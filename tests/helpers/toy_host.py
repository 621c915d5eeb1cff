"""A host whose queue a test fills and empties, and what a policy comes to on a GPU, where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.idle_builds import IdleBuilds
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from .interrupts import wait_for
from .toy_model import ToyModel
from .toys import CPU, ToyBackend


class AsOnAGpu(EnginePolicy):
    """What the policy comes to on a GPU, where there is none."""

    def on_missing_on(self, device: torch.device, *, builds_later: bool = False) -> str:
        return super().on_missing_on(torch.device("cuda"), builds_later=builds_later)


@dataclass
class ToyHost:
    """A host that has something to do until a test says otherwise."""

    idle: bool = False
    on: bool = True
    prompts: int = 1
    asked: int = 0
    freed: list[int] = field(default_factory=list)

    def is_on(self) -> bool:
        return self.on

    def is_idle(self) -> bool:
        self.asked += 1
        return self.idle and self.on

    def waiting(self) -> int:
        return self.prompts

    def free_device(self, needed_bytes: int) -> None:
        self.freed.append(needed_bytes)


class Room(LoadInPlace):
    """A device with so much memory, if anybody knows; it counts how often a build wanted it free."""

    def __init__(self, room_bytes: int | None = None) -> None:
        self._room_bytes, self.cleared = room_bytes, 0

    def room_bytes(self) -> int | None:
        return self._room_bytes

    def clear(self) -> None:
        self.cleared += 1


@dataclass(frozen=True)
class Idle:
    """A host with its builds for later, and the toy by which they are made."""

    host: ToyHost
    builds: IdleBuilds
    toy: ToyBackend
    folder: Path

    def engines(self, model: Any = None, memory_manager: Any = None, **policy: Any) -> EngineSet:
        """A set as `auto` has it on a GPU; keywords are a policy's."""
        wanted = AsOnAGpu(**{"on_missing": "auto", "precision": "fp32", **policy})
        store = EngineStore(self.folder)
        return EngineSet(model or ToyModel(), store, wanted, CPU, memory_manager, later=self.builds)

    def build(self) -> None:
        """Has all that is wanted built, or tried."""
        self.host.idle = True
        wait_for(lambda: self.builds.line == "")
        self.host.idle = False

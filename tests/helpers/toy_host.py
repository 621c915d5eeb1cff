"""A host whose queue a test fills and empties, and what a policy comes to on a GPU, where there is none."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from i2v_tensorrt.runtime.engines.idle_builds import IdleBuilds
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from .interrupts import wait_for


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


def let_build(host: ToyHost, builds: IdleBuilds) -> None:
    """Has all that is wanted built, or tried."""
    host.idle = True
    wait_for(lambda: builds.line == "")
    host.idle = False

"""Sets of engines over the devices that ComfyUI computes on."""

from __future__ import annotations

from dataclasses import dataclass

import comfy.model_management as memory
import torch

from ...engine_builder.backends.base import Report
from ...pipeline.models.base import VideoModel
from ...pipeline.models.model_networks import apart
from ...runtime.devices.token_group import TokenGroup, unserved
from ...runtime.engines.engine_set import EngineSet
from ...runtime.engines.missing import BuildsLater
from ...runtime.engines.policy import EnginePolicy
from .folders import engine_store
from .memory import HostMemoryManager, device


@dataclass(frozen=True)
class EngineMaker:
    """What sets of engines are made with: the policy, the report of builds, and the builder of later ones."""

    policy: EnginePolicy
    report: Report
    later: BuildsLater | None

    def of(self, model: VideoModel, second: torch.device | None = None) -> EngineSet:
        """The model's engines on ComfyUI's device, beside those on a `second` one where there is one."""
        first = self._on(model, device(), None)
        if second is None:
            return first
        devices, group = (first.device, second), None
        if unserved(first, len(devices)) is None:
            group = TokenGroup(first, devices, memory.throw_exception_if_processing_interrupted)
        return first.beside(self._on(apart(model), second, second), group)

    def _on(self, model: VideoModel, where: torch.device, on: torch.device | None) -> EngineSet:
        return EngineSet(model, engine_store(), self.policy, where, HostMemoryManager(on), self.report, self.later)


def remade(engines: EngineSet, model: VideoModel) -> EngineSet:
    """The same engines, on the same devices and under the same preset, of another model."""
    second = None if engines.second is None else engines.second.device
    return EngineMaker(engines.policy, engines.report, engines.later).of(model, second).with_preset(engines.preset)

"""A runner as ComfyUI's memory manager sees it: one of its models."""

from __future__ import annotations

from typing import Any

import torch
from comfy.model_patcher import ModelPatcher

from ..engine_builder.backends.base import Runner


class I2VEngine(torch.nn.Module):
    """What ComfyUI's memory manager sees of a runner."""

    def __init__(self, runner: Runner) -> None:
        super().__init__()
        self.runner = runner
        self.device: torch.device | None = None


class RunnerPatcher(ModelPatcher):
    """A runner in ComfyUI's memory manager: registered, reused and evicted as every model is, all or nothing."""

    def __init__(self, runner: Runner) -> None:
        offload = torch.device("cpu")
        super().__init__(I2VEngine(runner), load_device=runner.device, offload_device=offload, size=runner.memory_bytes)

    def load(self, device_to: Any = None, *_args: Any, **_kwargs: Any) -> None:
        self.model.runner.load()
        self.model.model_loaded_weight_memory = self.size
        self.model.model_lowvram = False
        self.model.device = self.load_device
        self.model.current_weight_patches_uuid = self.patches_uuid

    def partially_unload(self, *_args: Any, **_kwargs: Any) -> int:
        return 0

    def unpatch_model(self, device_to: Any = None, unpatch_weights: bool = True) -> None:
        if unpatch_weights:
            self.model.runner.unload()
            self.model.model_loaded_weight_memory = 0
            self.model.device = self.offload_device
            self.model.current_weight_patches_uuid = None

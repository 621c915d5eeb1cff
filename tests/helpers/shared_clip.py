"""A tiny Wan's clip without guidance over processes that share its tokens, and what is left of those."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.devices.token_group import TokenGroup
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from .stages import encoded, engines_of, sampled

REQUEST = ClipRequest(Image.new("RGB", (70, 50), "teal"), "a boat", "blurry", 64, 96, 9, 8)
ALONE = Denoising(seed=5, guidance_scale=1.0, sampler=SamplerSettings(2, "euler"))
GONE_S = 20
FAILING = Path(__file__).with_name("failing_rank.py")


def group_over(engines: EngineSet, count: int, **more: Any) -> EngineSet:
    """The engines, with a group of so many processes on the CPU."""
    return engines.beside(None, TokenGroup(engines, [engines.device] * count, **more))


def processes(engines: EngineSet) -> list[int]:
    """The ids of the group's processes."""
    assert isinstance(engines.group, TokenGroup)
    return engines.group.processes.pids


def are_gone(pids: list[int]) -> bool:
    """Whether no process of them is left, within a patience."""
    deadline = time.monotonic() + GONE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def folders() -> set[Path]:
    """What groups have of the disk."""
    return set(Path(tempfile.gettempdir()).glob("i2v-ranks-*"))


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two clips differ by the rounding of fp32 alone."""
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


class SharedClip:
    """The clip, and what one process gives."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.engines = engines_of(folder, store)
        self.conditioning: Conditioning = encoded(self.engines, REQUEST)
        self.expected = self.made(self.engines)

    def made(self, engines: EngineSet) -> torch.Tensor:
        return sampled(engines, self.conditioning, ALONE)

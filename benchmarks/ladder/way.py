"""A variant as the measurements see it: it builds, loads, makes the clip, and repeats its denoiser call."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch

from .job import Job

Mark = Callable[[str], None]
"""Callback with the name of a stage that has ended."""


@dataclass(frozen=True)
class Clip:
    """Clip of a way: unscaled latents [frames, 4, h, w] and frames [frames, height, width, 3] in 0..1,
    float32 on the CPU."""

    latents: torch.Tensor
    frames: torch.Tensor


class Way(ABC):
    """One way to make the job's clip."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.device = job.torch_device

    @abstractmethod
    def build(self) -> float | None:
        """Compiles the way's networks; returns the seconds, or None when the way compiles none."""

    @abstractmethod
    def load(self) -> float | None:
        """Makes the denoiser ready in a process that has not built it; returns the seconds for compiled networks."""

    @abstractmethod
    def clip(self, steps: int, mark: Mark, *, offload: bool = False) -> Clip:
        """Makes the clip; marks `encode`, `denoise` and `decode` as they end.

        With `offload` the encoders leave the device after conditioning.
        """

    @abstractmethod
    def step(self) -> Callable[[], object]:
        """The denoiser's call of the last clip, to be repeated."""

    def notes(self) -> list[str]:
        """Sentences worth telling since the last time."""
        return []

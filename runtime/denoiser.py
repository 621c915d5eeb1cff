"""`denoise(x, t)` over a clip's conditioning and a set of engines."""

from __future__ import annotations

import time

import torch

from ..pipeline.conditioning import Conditioning
from ..pipeline.denoising.guidance import GuidanceScale, branch_inputs
from .clip_plan import SamplingPlan

FIRST_TIMED_CALL, WEIGHED_CALL = 2, 5
"""Calls of a clip between which a call is timed: the first is slower, for libraries do their first-use work in it."""


class Denoiser:
    """`denoise(x, t)` over a clip's conditioning, by the denoiser that each timestep is for."""

    def __init__(self, plan: SamplingPlan, conditioning: Conditioning) -> None:
        self._plan, self._engines = plan, plan.clip.engines
        self.tensors = {name: tensor.to(self._engines.device) for name, tensor in conditioning.tensors.items()}
        self._calls, self._timed_from = 0, 0.0
        self._take(self._engines.model.denoiser)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        model, denoiser = self._engines.model, self._engines.model.select_denoiser(float(t))
        if denoiser != self._denoiser:
            self._take(denoiser)
        self._weigh()
        # On a GPU without waiting for earlier queued work. Other devices might read it too early.
        there = t.to(self._engines.device, non_blocking=self._engines.device.type == "cuda")
        values = model.prepare_input(x, there, self.tensors)
        inputs = branch_inputs(model.components[denoiser].spec.inputs, values, self._plan.denoisers[denoiser].branches)
        return model.combine(self._runner(inputs), self._guidance)

    def _take(self, denoiser: str) -> None:
        """Loads the denoiser, in the other's place where there is no room for both."""
        planned = self._plan.denoisers[denoiser]
        self._denoiser, self._runner = denoiser, self._engines.runner(denoiser, planned.sizes)
        self._guidance = self._rising(planned.guidance_scale)

    def _weigh(self) -> None:
        """Decides after some calls whether this clip and those behind it would end sooner with an engine built now."""
        self._calls += 1
        if self._calls == FIRST_TIMED_CALL:
            self._timed_from = time.monotonic()
        if self._calls != WEIGHED_CALL:
            return
        call_s = (time.monotonic() - self._timed_from) / (WEIGHED_CALL - FIRST_TIMED_CALL)
        engines, steps = self._engines, self._plan.denoising.sampler.steps
        calls = steps - WEIGHED_CALL + 1 + steps * engines.waiting_clips  # this one has not run yet
        sizes = self._plan.denoisers[self._denoiser].sizes
        if engines.hasten(self._denoiser, sizes, calls * call_s * engines.model.engine_gain):
            self._take(self._denoiser)

    def _rising(self, last: float) -> GuidanceScale:
        """The guidance of all frames, or of each where it rises towards the last."""
        model, first = self._engines.model, self._plan.denoising.min_guidance_scale
        first = model.min_guidance_scale if first is None else first
        if first is None:
            return last
        frames = model.latent.frames(self._plan.clip.size.num_frames)
        return torch.linspace(first, last, frames).reshape(-1, 1, 1, 1).to(self._engines.device)

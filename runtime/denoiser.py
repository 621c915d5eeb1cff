"""`denoise(x, t)` over a clip's conditioning and a set of engines."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch

from ..pipeline.conditioning import Conditioning
from ..pipeline.denoising.guidance import BOTH, Branches, GuidanceScale
from ..pipeline.models.model_networks import DEEP, SHALLOW
from .clip_plan import SamplingPlan
from .devices.branch_calls import BranchCall, branch_calls

FIRST_TIMED_CALL, WEIGHED_CALL = 2, 5
"""Calls of a clip between which a call is timed: the first is slower, for libraries do their first-use work in it."""


class Denoiser:
    """`denoise(x, t)` over a clip's conditioning, by the denoiser that each timestep is for.

    `predict`, `whole` and `shallow` run some branches in one call each: accelerators are made of them and `combine`.
    """

    def __init__(self, plan: SamplingPlan, conditioning: Conditioning) -> None:
        self._plan, self._engines = plan, plan.clip.engines
        first, self._branch_calls = branch_calls(self._engines, conditioning.tensors, guided=plan.is_guided)
        self.tensors = first.tensors
        self._calls, self._timed_from = 0, 0.0
        self._take(self._engines.model.denoiser)

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self._select(t)
        return self.combine(self.predict(x, t, self._planned.branches))

    def predict(self, x: torch.Tensor, t: torch.Tensor, branches: Branches) -> torch.Tensor:
        """Predictions [branches, ...] in the network's layout."""
        self._select(t)
        self._weigh()
        return self._run(self._denoiser, x, t, branches)["prediction"]

    def whole(self, x: torch.Tensor, t: torch.Tensor, branches: Branches) -> tuple[torch.Tensor, torch.Tensor]:
        """As `predict`, with the deep features [branches, ...]."""
        outputs = self._run(DEEP, x, t, branches)
        return outputs["prediction"], outputs["deep"]

    def shallow(self, x: torch.Tensor, t: torch.Tensor, branches: Branches, deep: torch.Tensor) -> torch.Tensor:
        """As `predict`, by the shallow part over deep features [branches, ...]."""
        return self._run(SHALLOW, x, t, branches, {"deep": deep})["prediction"]

    def combine(self, prediction: torch.Tensor) -> torch.Tensor:
        """The guided prediction; the conditional one where the current denoiser is not guided."""
        seen = prediction if self._planned.branches == BOTH else prediction[-1:]
        return self._engines.model.combine({"prediction": seen}, self._guidance)

    def _run(
        self,
        component: str,
        x: torch.Tensor,
        t: torch.Tensor,
        branches: Branches,
        more: Mapping[str, torch.Tensor] | None = None,
    ) -> Mapping[str, torch.Tensor]:
        return self._branch_calls.run(BranchCall(component, x, t, branches, self._planned.sizes, more or {}))

    def _select(self, t: torch.Tensor) -> None:
        denoiser = self._engines.model.select_denoiser(float(t))
        if denoiser != self._denoiser:
            self._take(denoiser)

    def _take(self, denoiser: str) -> None:
        """Turns to a denoiser, which is loaded in the other's place where there is no room for both."""
        self._denoiser, self._planned = denoiser, self._plan.denoisers[denoiser]
        self._branch_calls.forget()
        self._guidance = self._rising(self._planned.guidance_scale)

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
        if engines.hasten(self._denoiser, self._planned.sizes, calls * call_s * engines.model.engine_gain):
            self._take(self._denoiser)

    def _rising(self, last: float) -> GuidanceScale:
        """The guidance of all frames, or of each where it rises towards the last."""
        model, first = self._engines.model, self._plan.denoising.min_guidance_scale
        first = model.min_guidance_scale if first is None else first
        if first is None:
            return last
        frames = model.latent.frames(self._plan.clip.size.num_frames)
        return torch.linspace(first, last, frames).reshape(-1, 1, 1, 1).to(self._engines.device)

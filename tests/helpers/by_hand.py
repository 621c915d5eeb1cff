"""The accelerators' definitions written out in one loop, for tests: nothing of `pipeline/acceleration` but the plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from i2v_tensorrt.pipeline.acceleration.settings import ChangeCache
from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.guidance import BOTH, CONDITIONAL, GuidanceScale, branch_inputs
from i2v_tensorrt.pipeline.denoising.schedulers import make_scheduler
from i2v_tensorrt.runtime.clip_plan import SamplingPlan


@dataclass(frozen=True)
class ByHand:
    """The clip's latents as a LATENT, how often the network saw a branch, and what was held at the end."""

    latents: torch.Tensor
    seen: int
    held: Mapping[str, Any]


def by_hand(
    plan: SamplingPlan,
    conditioning: Conditioning,
    stale: Mapping[str, Any] | None = None,
    stop_at: int | None = None,
) -> ByHand:
    """The clip by the runners of the plan's engines.

    For controls, what is `stale` stays as it is for the whole clip, and no step after `stop_at` is taken.
    """
    engines, denoising, calls = plan.clip.engines, plan.denoising, plan.calls
    assert calls is not None
    model, acceleration = engines.model, engines.preset.acceleration
    scheduler = make_scheduler(denoising.sampler, model.scheduler_config)
    x = model.noise(*plan.clip.size, torch.Generator().manual_seed(denoising.seed))
    guidance = _guidance(plan, len(x))
    x, seen, state = x * scheduler.init_noise_sigma, 0, dict(stale or {})

    def hold(**values: Any) -> None:
        state.update({name: value for name, value in values.items() if name not in (stale or {})})

    def network(x: torch.Tensor, t: torch.Tensor, branches: range, step: int) -> torch.Tensor:
        nonlocal seen
        seen += len(branches)
        values = model.prepare_input(x, t, conditioning.tensors)
        inputs = branch_inputs(model.components["core"].spec.inputs, values, branches)
        if acceleration.deep_interval == 1:
            return engines.run("core", inputs)["prediction"]
        if step in calls.whole or len(branches) > len(state["deep"]):
            outputs = engines.run("core_deep", inputs)
            hold(deep=outputs["deep"])
            return outputs["prediction"]
        return engines.run("core_shallow", {**inputs, "deep": state["deep"][-len(branches) :]})["prediction"]

    def predict(x: torch.Tensor, t: torch.Tensor, step: int) -> torch.Tensor:
        if step in calls.guided:
            both = network(x, t, BOTH, step)
            hold(difference=both[1:] - both[:1])
            return model.combine({"prediction": both}, guidance)
        alone = network(x, t, CONDITIONAL, step)
        if "difference" not in state or acceleration.guidance is None or not acceleration.guidance.reuse:
            return model.combine({"prediction": alone}, guidance)
        pair = torch.cat([alone - state["difference"], alone])
        return model.combine({"prediction": pair}, guidance)

    for step, t in enumerate(scheduler.timesteps[:stop_at]):
        scaled = scheduler.scale_model_input(x, t)
        if _is_called(step, scaled, state, plan):
            prediction = predict(scaled, t, step)
            if "out" in state and isinstance(acceleration.step_cache, ChangeCache):
                hold(rate=_mean(prediction - state["out"]) / _mean(scaled - state["in"]))
            hold(**{"in": scaled, "out": prediction, "sum": 0.0})
        else:
            prediction = scaled + (state["out"] - state["in"])
        hold(before=scaled)
        x = scheduler.step(prediction, t, x).prev_sample
    return ByHand(model.to_latent(model.finish(x, conditioning.tensors)), seen, state)


def _guidance(plan: SamplingPlan, frames: int) -> GuidanceScale:
    """The guidance of all frames, or of each where it rises over them."""
    first, last = plan.clip.engines.model.min_guidance_scale, plan.denoising.guidance_scale
    return last if first is None else torch.linspace(first, last, frames).reshape(-1, 1, 1, 1)


def _is_called(step: int, x: torch.Tensor, state: dict[str, Any], plan: SamplingPlan) -> bool:
    calls, cache = plan.calls, plan.clip.engines.preset.acceleration.step_cache
    assert calls is not None
    if not isinstance(cache, ChangeCache):
        return step in calls.called
    if step not in calls.open or "rate" not in state:
        return True
    state["sum"] += state["rate"] * _mean(x - state["before"]) / _mean(state["out"])
    return state["sum"] >= cache.threshold


def _mean(x: torch.Tensor) -> float:
    return float(x.abs().mean())

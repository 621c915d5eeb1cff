"""Sampled clips kept by all that they are made from, so that the same request is answered at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ..common.digest import digest
from ..common.errors import BackendUnavailableError
from ..common.spec import named_network
from ..pipeline.conditioning import Conditioning
from ..pipeline.denoising.sampler import OnStep
from ..pipeline.request import Encoded
from ..pipeline.tensor_cache import CacheLimits, ConditioningCache
from .clip import sample_clip
from .clip_plan import SamplingPlan
from .engines.policy import EnginePolicy

SCHEMA = 1
"""Raised when the meaning of a kept result changes."""
LIMITS = CacheLimits(memory_bytes=64 << 20, disk_bytes=2 << 30)
_LATENTS = "latents"


@dataclass(frozen=True)
class Sampled:
    """Latents of `sample_clip`, their source (`sampled`, `memory`, `disk`), and the seconds that sampling took.

    `elapsed_s` is the time of sampling, now or then.
    """

    latents: torch.Tensor
    place: str
    elapsed_s: float


def sample_or_recall(
    plan: SamplingPlan,
    conditioning: Conditioning,
    on_step: OnStep,
    results: ConditioningCache | None,
    start: torch.Tensor | None = None,
) -> Sampled:
    """The clip's latents, from `results` if they are there, else sampled now and kept; None keeps none.

    A result of another backend than planned, such as eager in place of an engine that failed, is not kept.
    """
    name = None if results is None else result_key(plan, conditioning, start)
    if results is not None and name is not None:
        hit = results.get(name)
        if hit is not None and (found := _fitting(hit.encoded, plan)) is not None:
            return Sampled(found, hit.place, hit.encode_s)
    started = time.monotonic()
    latents = sample_clip(plan, conditioning, on_step, start=start)
    elapsed_s = time.monotonic() - started
    if results is not None and name is not None and _ran_as_planned(plan):
        results.put(name, Encoded({_LATENTS: latents.clone()}), elapsed_s)
    return Sampled(latents, "sampled", elapsed_s)


def result_key(plan: SamplingPlan, conditioning: Conditioning, start: torch.Tensor | None = None) -> str | None:
    """The name of a clip's result: a digest of model, conditioning, settings, policy, backend, and of `start`.

    None where the policy's backend does not serve the device, for then another backend runs.
    """
    engines, backends = plan.clip.engines, [denoiser.backend for denoiser in plan.denoisers.values()]
    if engines.policy.quantized is not None:
        return None  # two engines with scales from other pictures would share a name
    try:
        targets = [asdict(backend.target(engines.device)) for backend in backends if backend is not None]
    except BackendUnavailableError:
        return None
    if len(targets) < len(backends):
        return None
    model = engines.model
    return digest(
        {
            "schema": SCHEMA,
            "networks": [named_network(model.components[name].spec) for name in model.denoisers],
            "scheduler": repr(sorted(model.scheduler_config.items())),
            "latent_scale": model.latent_scale,
            "policy": _named(replace(engines.policy, precision=engines.catalog.run_precision(model.denoiser))),
            "targets": targets,
            "size": [*conditioning.size, conditioning.fps],
            "conditioning": content(conditioning.tensors),
            "denoising": _denoising(plan),
            **({} if engines.second is None else {"devices": 2}),
            **({} if start is None else {"start": content({"latents": start})}),
        }
    )


def _denoising(plan: SamplingPlan) -> dict[str, Any]:
    """The sampler's settings in a result's name; results from before there were the later ones keep their names."""
    named, acceleration = asdict(plan.denoising), plan.clip.engines.preset.acceleration
    if named["sampler"]["spacing"] is None:
        del named["sampler"]["spacing"]
    if plan.denoising.sampler.strength == 1:
        del named["sampler"]["strength"]
    if plan.calls is not None:
        named["acceleration"] = {"kind": type(acceleration.step_cache).__name__, **asdict(acceleration)}
        named["called"] = list(plan.calls.called)
    return named


def content(tensors: Mapping[str, torch.Tensor]) -> str:
    """A digest of the tensors' names, types, shapes and values."""
    sha = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        plain = tensor.detach().cpu().contiguous()
        sha.update(f"{name} {plain.dtype} {list(plain.shape)}\0".encode())
        sha.update(plain.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _fitting(encoded: Encoded, plan: SamplingPlan) -> torch.Tensor | None:
    """A copy of the kept latents, which the caller may change; None for an entry that is no result of this size."""
    latents, space = encoded.tensors.get(_LATENTS), plan.clip.engines.model.latent
    wanted = space.pack(torch.empty(space.shape(*plan.clip.size), device="meta")).shape
    if latents is None or latents.shape != wanted or latents.dtype != torch.float32:
        return None
    return latents.clone()


def _ran_as_planned(plan: SamplingPlan) -> bool:
    planned = {name: denoiser.backend.name for name, denoiser in plan.denoisers.items() if denoiser.backend is not None}
    return plan.clip.engines.runners.last_backends(planned).items() <= planned.items()


def _named(policy: EnginePolicy) -> dict[str, Any]:
    """The policy in a result's name; results from before weights had a place keep their names."""
    named = asdict(policy)
    if policy.weight_place is None:
        del named["weights"]
    return named

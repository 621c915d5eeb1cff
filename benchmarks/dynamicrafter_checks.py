"""DynamiCrafter's figures that need no GPU: how far its networks and its schedule are from diffusers' modules and the
published formula, and which numbers of steps give latents that are not finite, in every family."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..pipeline.denoising.sampler import sample
from ..pipeline.denoising.schedulers import MAX_STEPS, SamplerSettings, make_scheduler
from ..pipeline.dummies import i2vgen_xl, svd, wan
from ..pipeline.dummies.dynamicrafter import write_tiny_dynamicrafter
from ..pipeline.models.dynamicrafter import published_settings as dynamicrafter
from ..pipeline.models.dynamicrafter.model import DynamiCrafter
from ..pipeline.models.i2vgen_xl.model import I2VGenXL
from ..pipeline.models.registry import open_model
from ..pipeline.models.svd.model import StableVideoDiffusion
from ..pipeline.models.wan.model import Wan21
from .dynamicrafter_reference import ReferenceSchedule, reference_projection, reference_unet

PLANES = ((8, 8), (16, 8), (8, 24))
STEPS = (1, 7, 20, 30, 50)
ETAS = (0.0, 1.0)
SPACINGS = ("leading", "trailing")
SHAPE = (1, 1, 2, 2)
FAMILIES: Mapping[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "i2vgen_xl": (i2vgen_xl.SCHEDULER, I2VGenXL.schedulers),
    "svd": (svd.SCHEDULER, StableVideoDiffusion.schedulers),
    "wan": (wan.SCHEDULER, Wan21.schedulers),
    **{
        f"dynamicrafter_{kind}": ({**dynamicrafter.SCHEDULER, **own}, DynamiCrafter.schedulers)
        for kind, own in dynamicrafter.KIND_SCHEDULER.items()
    },
}
"""Each family's published schedule, and its schedulers."""


@torch.no_grad()
def parity() -> dict[str, float]:
    """The greatest relative difference of each network, plain and fused, and of the schedule, in fp32 on the CPU.

    The networks are of random weights, with the published numbers of levels and layers and narrower ones.
    """
    with tempfile.TemporaryDirectory(prefix="i2v-parity-") as work:
        folder = write_tiny_dynamicrafter(Path(work) / "checkpoint")
        model, reference = open_model(folder), reference_unet(folder / "unet")
        given = [_inputs(plane, branches) for plane in PLANES for branches in (2, 1)]
        wanted = [reference.predict(each) for each in given]
        ways = {"core": (), "core_fused": model.known_rewrites["core"]}
        found = {}
        for name, rewrites in ways.items():
            core = model.load("core", "fp32", rewrites)
            found[name] = max(_off(core(**each), other) for each, other in zip(given, wanted, strict=True))
        projection, stored = model.load("image_projection", "fp32"), reference_projection(folder / "image_projection")
        states = [torch.randn(batch, 17, 32, generator=torch.Generator().manual_seed(batch)) for batch in (1, 2)]
        found["image_projection"] = max(_off(projection(each), stored(each)) for each in states)
    return {**found, "schedule": max(_off(*stepped(*each)) for each in _schedules())}


def _inputs(plane: tuple[int, int], branches: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(sum(plane))
    normal = partial(torch.randn, generator=generator)
    return {
        "sample": normal(1, 16, 4, *plane).repeat(branches, 1, 1, 1, 1),
        "timestep": torch.full((branches,), 701.0),
        "image_latents": normal(1, 16, 4, *plane).repeat(branches, 1, 1, 1, 1),
        "text_states": normal(branches, 77, 32),
        "image_tokens": normal(branches, 16, 2, 32),
        "fs": torch.full((branches,), 13.0),
    }


def _off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The greatest difference, as a part of the greatest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def _schedules() -> Iterator[tuple[str, int, float]]:
    return ((kind, steps, eta) for kind in dynamicrafter.KINDS for steps in STEPS for eta in ETAS)


def stepped(kind: str, steps: int, eta: float, **changes: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents by the scheduler, with changes of its configuration, and by the formula, for predictions at random."""
    config = {**dynamicrafter.SCHEDULER, **dynamicrafter.KIND_SCHEDULER[kind]}
    scheduler = make_scheduler(SamplerSettings(steps, eta=eta), {**config, **changes})
    formula, generators = ReferenceSchedule(config, steps), [torch.Generator().manual_seed(1) for _ in range(2)]
    predictions = torch.randn(steps, 2, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    x = y = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(3))
    for number, (t, prediction) in enumerate(zip(scheduler.timesteps, predictions, strict=True)):
        x = scheduler.step(prediction, t, x, eta=eta, generator=generators[0]).prev_sample
        y = formula.step(number, y, prediction, eta, partial(torch.randn, x.shape, generator=generators[1]))
    return x, y


def not_finite(counts: Sequence[int] = range(1, MAX_STEPS + 1)) -> list[str]:
    """Every family's schedules at every number of steps that end in latents that are not finite, in words.

    DDIM runs with eta 0 and 1, and with leading and trailing timesteps.
    """
    return [case for name in FAMILIES for case in _not_finite(name, counts)]


def _not_finite(name: str, counts: Sequence[int]) -> Iterator[str]:
    published, schedulers = FAMILIES[name]
    for scheduler in schedulers:
        spacings, etas = (SPACINGS, ETAS) if scheduler == "ddim" else ((None,), (0.0,))
        for spacing in spacings:
            config = {**published, "timestep_spacing": spacing} if spacing else published
            for eta in etas:
                for steps in counts:
                    if not _sampled(config, steps, scheduler, eta).isfinite().all():
                        yield f"{name}, {scheduler}, {spacing or 'as published'}, eta {eta:g}, {steps} steps"


def _sampled(config: Mapping[str, Any], steps: int, scheduler: str, eta: float) -> torch.Tensor:
    """Latents of a network that sees noise everywhere."""
    settings, generator = SamplerSettings(steps, scheduler, eta), torch.Generator().manual_seed(steps)
    noise = torch.randn(SHAPE, generator=generator)
    return sample(lambda x, t: -noise, make_scheduler(settings, config), noise, settings, generator, _ignore)


def _ignore(*_: object) -> None:
    """Watches no progress."""

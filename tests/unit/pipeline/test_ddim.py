"""DDIM that gives finite latents for every number of steps, for every family's schedule."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from i2v_tensorrt.pipeline.denoising.sampler import sample
from i2v_tensorrt.pipeline.denoising.schedulers import MAX_STEPS, SamplerSettings, is_flow, make_scheduler
from i2v_tensorrt.pipeline.dummies import i2vgen_xl, svd, wan
from i2v_tensorrt.pipeline.models.dynamicrafter import published_settings as dynamicrafter
from i2v_tensorrt.pipeline.models.dynamicrafter.model import DynamiCrafter
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.models.svd.model import StableVideoDiffusion
from i2v_tensorrt.pipeline.models.wan.model import Wan21

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

ZERO_SNR = {**dynamicrafter.SCHEDULER, **dynamicrafter.KIND_SCHEDULER["512"]}
CONFIGS: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
    "i2vgen_xl": (i2vgen_xl.SCHEDULER, I2VGenXL.schedulers),
    "svd": (svd.SCHEDULER, StableVideoDiffusion.schedulers),
    "wan": (wan.SCHEDULER, Wan21.schedulers),
    **{
        f"dynamicrafter_{kind}": ({**dynamicrafter.SCHEDULER, **own}, DynamiCrafter.schedulers)
        for kind, own in dynamicrafter.KIND_SCHEDULER.items()
    },
}
"""A family's published configuration, and its schedulers; those of I2VGen-XL beside ddim have no eta."""
DDIM = [name for name, (_, schedulers) in CONFIGS.items() if "ddim" in schedulers]
SHAPE = (1, 1, 2, 2)
EVERY = range(1, MAX_STEPS + 1)
SOME = [*range(1, 61), *range(61, MAX_STEPS + 1, 73)]


def sampled(config: Mapping[str, Any], steps: int, scheduler: str = "ddim", eta: float = 0.0) -> torch.Tensor:
    """Latents of a network that sees noise everywhere."""
    settings = SamplerSettings(steps, scheduler, eta)
    generator = torch.Generator().manual_seed(steps)
    noise = torch.randn(SHAPE, generator=generator)
    made = make_scheduler(settings, config)
    return sample(lambda x, t: -noise, made, noise, settings, generator, lambda *_: None)


def not_finite(config: Mapping[str, Any], counts: Iterable[int], scheduler: str, eta: float = 0.0) -> list[int]:
    """Numbers of steps that give something else than finite latents."""
    return [steps for steps in counts if not sampled(config, steps, scheduler, eta).isfinite().all()]


def diffusers_ddim(config: Mapping[str, Any]) -> Any:
    return DDIMScheduler(**config)


each_count = pytest.mark.parametrize("counts", [SOME, pytest.param(EVERY, marks=pytest.mark.torture)], ids=len)


@each_count
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("name", DDIM)
def test_every_number_of_steps_gives_finite_latents(name: str, eta: float, spacing: str, counts: Iterable[int]) -> None:
    assert not_finite({**CONFIGS[name][0], "timestep_spacing": spacing}, counts, "ddim", eta) == []


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [(name, scheduler) for name in ("svd", "wan") for scheduler in CONFIGS[name][1]],
)
@each_count
def test_other_families_schedulers_do_too(name: str, scheduler: str, counts: Iterable[int]) -> None:
    assert not_finite(CONFIGS[name][0], counts, scheduler) == []


def test_control_diffusers_own_does_not() -> None:
    """What the clamp is for: as many as 39 of the first 100 numbers of steps give no number."""
    known = {
        name: value for name, value in ZERO_SNR.items() if name not in ("guidance_rescale", "dynamic_rescale_base")
    }
    settings, wrong = SamplerSettings(1, eta=1.0), 0
    for steps in range(1, 101):
        scheduler = diffusers_ddim(known)
        scheduler.set_timesteps(steps)
        step = scheduler.step(torch.ones(SHAPE), int(scheduler.timesteps[0]), torch.ones(SHAPE), eta=settings.eta)
        wrong += not step.prev_sample.isfinite().all()
    assert wrong > 0  # how many depends on the rounding of the CPU at hand


@pytest.mark.parametrize("steps", [7, 30, 50])
def test_each_step_leads_to_the_next_of_the_list(steps: int) -> None:
    """A network that sees no signal at all leaves the noise, in the proportion of the step's end."""
    scheduler = make_scheduler(SamplerSettings(steps), {**ZERO_SNR, "dynamic_rescale_base": None})
    timesteps = scheduler.timesteps.tolist()
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
    for t, following in zip(timesteps, timesteps[1:], strict=False):
        alpha, end = scheduler.alphas_cumprod[t], scheduler.alphas_cumprod[following]
        x = (1 - alpha).sqrt() * noise
        found = scheduler.step(alpha.sqrt() * noise, t, x).prev_sample
        assert torch.allclose(found, (1 - end).sqrt() * noise, atol=1e-5)


def test_the_published_pipeline_of_i2vgen_xl_steps_alike() -> None:
    """Leading timesteps are as far from each other as diffusers takes them to be: nothing has changed for them."""
    for steps in (1, 3, 30, 50, 499):
        ours, theirs = make_scheduler(SamplerSettings(steps), i2vgen_xl.SCHEDULER), diffusers_ddim(i2vgen_xl.SCHEDULER)
        theirs.set_timesteps(steps)
        x = y = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))
        for t in theirs.timesteps:
            x, y = (scheduler.step(each.sin(), t, each).prev_sample for scheduler, each in ((ours, x), (theirs, y)))
        assert torch.allclose(x, y, rtol=1e-4, atol=1e-5), steps


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("limits", [{}, {"clip_sample": True}, {"thresholding": True}], ids=str)
def test_every_setting_of_the_configuration_counts_as_in_diffusers(kind: str, limits: dict[str, Any]) -> None:
    config = {**i2vgen_xl.SCHEDULER, "rescale_betas_zero_snr": False, "prediction_type": kind, **limits}
    ours, theirs = make_scheduler(SamplerSettings(10), config), diffusers_ddim(config)
    theirs.set_timesteps(10)
    x, prediction = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0)).mul(3).unbind()
    for t in theirs.timesteps:
        found, wanted = (each.step(prediction, t, x) for each in (ours, theirs))
        assert torch.allclose(found.prev_sample, wanted.prev_sample, rtol=1e-5, atol=1e-5)
        assert torch.allclose(found.pred_original_sample, wanted.pred_original_sample, rtol=1e-5, atol=1e-5)


def test_flow_matching_has_no_ddim() -> None:
    assert {name for name, (config, _) in CONFIGS.items() if is_flow(config)} == {"wan"}


def test_the_rescale_ends_where_it_began() -> None:
    """All steps but the last multiply the clean latents, together by the last scale over the first."""
    scheduler = make_scheduler(SamplerSettings(50), ZERO_SNR)
    steps = scheduler.timesteps.tolist()
    factors = [scheduler._rescale(t, following) for t, following in zip(steps, [*steps[1:], None], strict=True)]
    assert factors[-1] == 1.0
    assert math.prod(factors) == pytest.approx((1 - 0.3 * 19 / 399) / 0.7)

"""Every scheduler, against denoisers whose answer is known, needs no network to be right or wrong."""

import logging
from collections.abc import Iterator

import pytest
import torch

from i2v_tensorrt.common.errors import CheckpointError, InputError
from i2v_tensorrt.pipeline.denoising.sampler import Denoise, OnStep, sample
from i2v_tensorrt.pipeline.denoising.schedulers import MAX_STEPS, SCHEDULERS, SamplerSettings, make_scheduler
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import SCHEDULER

from ...helpers.refusals import refused

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

SHAPE = (16, 4, 8, 8)
MEAN, DEVIATION = 0.7, 0.5
STOCHASTIC = ("euler_ancestral", "ddpm")
DETERMINISTIC = [name for name in SCHEDULERS if name not in STOCHASTIC]
LEFT_AT_THE_END = {"deis": 0.05}
"""DEIS stops at the noise of timestep 0, all others at none."""


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def alphas() -> torch.Tensor:
    """The published cumulative products, as DDIM keeps them."""
    return make_scheduler(SamplerSettings(1), SCHEDULER).alphas_cumprod.double()


def velocity(x: torch.Tensor, clean: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """The v-prediction at `x` of a denoiser that expects `clean`."""
    noise = (x - alpha.sqrt() * clean) / (1 - alpha).sqrt()
    return (alpha.sqrt() * noise - (1 - alpha).sqrt() * clean).float()


def towards(clean: torch.Tensor) -> Denoise:
    """Knows the answer."""
    known = alphas()
    return lambda x, t: velocity(x.double(), clean.double(), known[t.long()])


def gaussian() -> Denoise:
    """The best denoiser where every latent is drawn from N(MEAN, DEVIATION^2).

    Without added noise it takes the noise n exactly to MEAN + DEVIATION * n.
    """
    known, variance = alphas(), DEVIATION**2

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, x = known[t.long()], x.double()
        gain = alpha.sqrt() * variance / (alpha * variance + 1 - alpha)
        return velocity(x, MEAN + gain * (x - alpha.sqrt() * MEAN), alpha)

    return denoise


def run(
    denoise: Denoise, settings: SamplerSettings, seed: int = 0, on_step: OnStep = lambda *_: None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The starting noise, and what the loop makes of it."""
    noise, drawn = torch.randn(SHAPE, generator=generator(7)), generator(seed)
    return noise, sample(denoise, make_scheduler(settings, SCHEDULER), noise, settings, drawn, on_step)


@pytest.fixture
def complaints() -> Iterator[list[str]]:
    """What diffusers says on its log meanwhile."""
    heard: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.append(record.getMessage())
    logger = logging.getLogger("diffusers")
    logger.addHandler(handler)
    yield heard
    logger.removeHandler(handler)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 25, 50, 499, MAX_STEPS])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_a_known_clip_is_found(name: str, steps: int) -> None:
    clean = torch.randn(SHAPE, generator=generator(3))
    _, found = run(towards(clean), SamplerSettings(steps, name))
    # The multistep classes put 2^-24 for the signal that timestep 999 has none of: one step alone shows it.
    assert (found - clean).abs().max() <= LEFT_AT_THE_END.get(name, 1e-3 if steps == 1 else 1e-5)


@pytest.mark.parametrize(("strength", "taken"), [(0.01, 1), (0.4, 8), (1.0, 20)])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_latents_that_are_there_go_through_the_last_steps(name: str, strength: float, taken: int) -> None:
    settings, clean = SamplerSettings(20, name, strength=strength), torch.randn(SHAPE, generator=generator(3))
    known, answer, seen = alphas(), towards(clean), list[tuple[torch.Tensor, torch.Tensor]]()

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append((x, t))
        return answer(x, t)

    noise, scheduler = torch.randn(SHAPE, generator=generator(7)), make_scheduler(settings, SCHEDULER)
    found = sample(denoise, scheduler, noise, settings, generator(0), lambda *_: None, clean)
    every = scheduler.timesteps
    assert [float(t) for _, t in seen] == [float(t) for t in every[len(every) - taken :]]
    x, t = seen[0]
    alpha = known[t.long()].float()
    wanted = alpha.sqrt() * clean + (1 - alpha).sqrt() * noise
    assert (x - wanted).abs().max() <= 0.02 * wanted.abs().max(), "as noisy as that step expects it"
    assert (found - clean).abs().max() <= LEFT_AT_THE_END.get(name, 1e-3)


@pytest.mark.parametrize(
    ("name", "steps", "tolerance"),
    [
        ("ddim", 50, 0.02),
        ("euler", 50, 0.02),
        ("dpmpp_2m", 50, 0.001),
        ("unipc", 50, 0.001),
        ("deis", 50, 0.003),
        *((name, MAX_STEPS, 0.002) for name in DETERMINISTIC),
    ],
)
def test_deterministic_schedulers_follow_the_flow(name: str, steps: int, tolerance: float) -> None:
    noise, found = run(gaussian(), SamplerSettings(steps, name))
    assert (found - (MEAN + DEVIATION * noise)).square().mean().sqrt() <= tolerance


@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in STOCHASTIC), ("ddim", 1.0), ("ddim", 0.5)])
def test_stochastic_schedulers_reach_the_distribution(name: str, eta: float) -> None:
    _, found = run(gaussian(), SamplerSettings(200, name, eta))
    assert found.mean().item() == pytest.approx(MEAN, abs=0.05)
    assert found.std().item() == pytest.approx(DEVIATION, abs=0.05)


@pytest.mark.parametrize(("name", "eta"), [*((name, 0.0) for name in SCHEDULERS), ("ddim", 1.0)])
def test_the_seed_decides_alone(name: str, eta: float) -> None:
    settings = SamplerSettings(8, name, eta)
    torch.manual_seed(1)
    first = run(gaussian(), settings)[1]
    torch.manual_seed(2)
    assert torch.equal(run(gaussian(), settings)[1], first)
    moved = not torch.equal(run(gaussian(), settings, seed=1)[1], first)
    assert moved == (name in STOCHASTIC or eta > 0)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_eta_counts_for_ddim_alone_and_there_is_nothing_to_complain_about(name: str, complaints: list[str]) -> None:
    one, other = (run(gaussian(), SamplerSettings(4, name, eta))[1] for eta in (1.0, 0.0))
    assert torch.equal(one, other) == (name != "ddim")
    assert complaints == []


def test_complaints_would_be_heard(complaints: list[str]) -> None:
    from diffusers import DDIMScheduler

    DDIMScheduler.from_config({**SCHEDULER, "no_such_setting": 1})
    assert "no_such_setting" in "".join(complaints)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_step_is_told_with_an_estimate_that_gets_closer(name: str) -> None:
    clean = torch.randn(SHAPE, generator=generator(3))
    told: list[tuple[int, int, float]] = []
    run(
        towards(clean),
        SamplerSettings(6, name),
        on_step=lambda done, total, x: told.append((done, total, (x - clean).abs().max().item())),
    )
    assert [step[:2] for step in told] == [(done, 6) for done in range(1, 7)]
    rounding = 4 * torch.finfo(clean.dtype).eps * clean.abs().max().item()  # the first may be exact by luck
    assert told[-1][2] <= max(told[0][2], rounding)
    assert told[-1][2] <= LEFT_AT_THE_END.get(name, 1e-5)


@pytest.mark.parametrize("stop_at", [1, 3])
def test_interruption_takes_effect_within_its_step(stop_at: int) -> None:
    calls: list[int] = []
    denoise = gaussian()

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        calls.append(int(t))
        return denoise(x, t)

    def on_step(done: int, total: int, x: torch.Tensor) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(counted, SamplerSettings(8), on_step=on_step)
    assert len(calls) == stop_at


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        *(({"steps": steps}, "Steps are a whole number") for steps in (0, -1, MAX_STEPS + 1, 2.5, True, float("nan"))),
        *(({"steps": 4, "eta": eta}, "Eta is a number from 0 to 1") for eta in (-0.1, 1.1, float("nan"), float("inf"))),
        *(({"steps": 4, "strength": value}, "Strength is a number from 0.01 to 1") for value in (0, 1.1, float("nan"))),
        *(({"steps": 4, "scheduler": name}, "one of ddim, ") for name in ("", "DDIM", "DDIMScheduler", "lcm")),
    ],
)
def test_settings_that_cannot_be_served(settings: dict[str, object], word: str) -> None:
    with refused(InputError, word) as error:
        SamplerSettings(**settings)
    assert str(list(settings.values())[-1]) in str(error.value)


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        *((name, "beta_schedule", "no_such") for name in SCHEDULERS),
        *((name, "num_train_timesteps", "many") for name in SCHEDULERS),
        ("ddim", "timestep_spacing", 7),
        ("euler", "timestep_spacing", "no_such"),
    ],
)
def test_a_configuration_that_makes_no_scheduler(name: str, setting: str, value: object) -> None:
    with refused(CheckpointError, "scheduler_config.json"):
        make_scheduler(SamplerSettings(4, name), {**SCHEDULER, setting: value})

"""The distillation's steps are DDIM's, and the UNet alone learns."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from i2v_tensorrt.demo_model.training import networks as nets
from i2v_tensorrt.demo_model.training.clips import View
from i2v_tensorrt.demo_model.training.loop import Plan
from i2v_tensorrt.demo_model.training.train_few_steps import (
    STEPS,
    SUBSTEPS,
    Course,
    lesson,
    train_few_steps,
    turned,
    velocity_between,
)
from i2v_tensorrt.demo_model.training.train_motion import Batch

ROOT = Path(__file__).resolve().parents[3]
CPU = torch.device("cpu")


def noise(seed: int) -> Tensor:
    return torch.randn(STEPS, 4, 2, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_a_turn_is_a_step_of_diffusers() -> None:
    scheduler: Any = nets.build_scheduler()
    scheduler.register_to_config(timestep_spacing="trailing")
    scheduler.set_timesteps(STEPS)
    course, noisy, velocity = Course.on(CPU), noise(0)[:1], noise(1)[:1]
    assert course.times[::SUBSTEPS].tolist() == scheduler.timesteps.tolist()
    for number, time in enumerate(scheduler.timesteps):
        wanted = scheduler.step(velocity, time, noisy, eta=0.0).prev_sample
        turn = course.angles[number * SUBSTEPS] - course.angles[(number + 1) * SUBSTEPS]
        assert torch.allclose(turned(noisy, velocity, turn[None]), wanted, atol=1e-4)


def test_the_velocity_between_two_clips_leads_from_one_to_the_other() -> None:
    turn = torch.rand(STEPS, generator=torch.Generator().manual_seed(2)) + 0.1
    noisy, end = noise(0), noise(1)
    assert torch.allclose(turned(noisy, velocity_between(noisy, end, turn), turn), end, atol=1e-5)


def test_a_teacher_that_knows_the_clip_teaches_its_own_velocity() -> None:
    clip, spread = noise(3), noise(4)
    course, step = Course.on(CPU), torch.arange(STEPS)

    def at(angle: Tensor) -> tuple[Tensor, Tensor]:
        angle = angle.view(-1, 1, 1, 1, 1)
        return torch.cos(angle) * clip + torch.sin(angle) * spread, torch.cos(angle) * spread - torch.sin(angle) * clip

    def teacher(noisy: Tensor, times: Tensor, batch: Batch) -> Tensor:
        rows = [course.times.tolist().index(time) for time in times.tolist()]
        return at(course.angles[rows])[1]

    noisy, velocity = at(course.angles[step * SUBSTEPS])
    words = torch.zeros(STEPS, 77, dtype=torch.long)
    batch = Batch(clip, clip, words, torch.full((STEPS,), 8), torch.ones(STEPS))
    taught = lesson(teacher, noisy, step, batch, words[0], course)  # type: ignore[arg-type]
    assert torch.allclose(taught, velocity, atol=1e-4)


@pytest.mark.slow
def test_the_unet_learns_and_nothing_else_does(tmp_path: Path) -> None:
    networks, before = (nets.build(nets.Sizes.tiny(), 1) for _ in range(2))
    tokenizer = nets.load_tokenizer(ROOT / "demo_model")
    train_few_steps(networks, Plan(tmp_path, 2, 2, 1e-3, warmup=1), CPU, tokenizer, View(32, 2))
    for name, part in networks.parts().items():
        pairs = zip(part.parameters(), before.parts()[name].parameters(), strict=True)
        assert all(torch.equal(new, old) for new, old in pairs) == (name != "unet")

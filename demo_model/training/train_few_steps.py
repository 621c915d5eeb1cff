"""Stage three: the UNet taught by itself, so that a few unguided steps lead where twice as many guided ones do.

Progressive distillation (Salimans and Ho, 2022), with guidance made part of it (Meng et al., 2023): from noised clips
the teacher takes SUBSTEPS guided steps of DDIM, and the student learns the one step that ends there.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .clips import View
from .conditioning import token_table
from .loop import Plan, Run
from .networks import Networks, build_scheduler
from .speed import flatten_time
from .train_motion import Batch, MotionNetworks, batches, without_dropout
from .vocabulary import captions

FIRST_SEED = 2**38  # apart from the other stages'
STEPS = 8
SUBSTEPS = 2
GUIDANCE = 3.0


@dataclass(frozen=True)
class Course:
    """The times at which the teacher's steps begin (STEPS * SUBSTEPS,), and the angle of each and of the end.

    At an angle the noised clip is cos(angle) clip + sin(angle) noise, and a step of DDIM by a velocity is a turn.
    """

    times: Tensor
    angles: Tensor

    @classmethod
    def on(cls, device: torch.device) -> Course:
        """By the published schedule with trailing spacing, the last step to the clip itself."""
        scheduler: Any = build_scheduler()
        scheduler.register_to_config(timestep_spacing="trailing")
        scheduler.set_timesteps(STEPS * SUBSTEPS)
        times = scheduler.timesteps.to(device)
        angles = torch.acos(scheduler.alphas_cumprod.to(device)[times].sqrt())
        return cls(times, torch.cat([angles, angles.new_zeros(1)]))


def turned(noisy: Tensor, velocity: Tensor, turn: Tensor) -> Tensor:
    """A step of DDIM by that angle (B,)."""
    turn = turn.view(-1, 1, 1, 1, 1)
    return torch.cos(turn) * noisy - torch.sin(turn) * velocity


def velocity_between(noisy: Tensor, end: Tensor, turn: Tensor) -> Tensor:
    """The velocity by which a step of that angle (B,) leads to `end`."""
    turn = turn.view(-1, 1, 1, 1, 1)
    return (torch.cos(turn) * noisy - end) / torch.sin(turn)


def guided(teacher: MotionNetworks, noisy: Tensor, times: Tensor, batch: Batch, nothing: Tensor) -> Tensor:
    """The teacher's velocity with guidance; `nothing` (77,) holds the tokens of no text."""
    blank = replace(batch, tokens=nothing.expand_as(batch.tokens), with_picture=torch.zeros_like(batch.with_picture))
    without = teacher(noisy, times, blank).float()
    return without + GUIDANCE * (teacher(noisy, times, batch).float() - without)


@torch.no_grad()
def lesson(
    teacher: MotionNetworks, noisy: Tensor, step: Tensor, batch: Batch, nothing: Tensor, course: Course
) -> Tensor:
    """The velocity of the student's step `step` (B,) that leads where the teacher's steps do."""
    reached = noisy
    for substep in range(SUBSTEPS):
        at = step * SUBSTEPS + substep
        velocity = guided(teacher, reached, course.times[at], batch, nothing)
        reached = turned(reached, velocity, course.angles[at] - course.angles[at + 1])
    first = step * SUBSTEPS
    return velocity_between(noisy, reached, course.angles[first] - course.angles[first + SUBSTEPS])


def train_few_steps(networks: Networks, plan: Plan, device: torch.device, tokenizer: Any, view: View) -> Run:
    """Trains the UNet by its own guided steps; the other networks are used as they are."""
    vae: Any = networks.vae.to(device).eval().requires_grad_(False)
    for encoder in (networks.text, networks.vision):
        encoder.requires_grad_(False)
    student = MotionNetworks(networks).to(device).train()
    without_dropout(student)
    flatten_time(networks.unet)
    teacher = deepcopy(student).eval().requires_grad_(False)
    run = Run(plan, {"unet": networks.unet}, {"stage": "few-steps", "scaling_factor": vae.config["scaling_factor"]})
    table = token_table(tokenizer, [*captions(), ""]).to(device)
    batch_from = batches(vae, plan, device, table, view)
    course, generator = Course.on(device), torch.Generator(device)
    if plan.compile:
        student.unet = torch.compile(student.unet, dynamic=False)
        teacher.unet = torch.compile(teacher.unet, dynamic=False)

    def loss_of(number: int) -> Tensor:
        generator.manual_seed(number)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            batch = batch_from(FIRST_SEED + plan.first_clip + number * plan.batch)
            step = torch.randint(0, STEPS, (plan.batch,), generator=generator, device=device)
            noise = torch.randn(batch.latents.shape, generator=generator, device=device)
            angle = course.angles[step * SUBSTEPS].view(-1, 1, 1, 1, 1)
            noisy = torch.cos(angle) * batch.latents + torch.sin(angle) * noise
            wanted = lesson(teacher, noisy, step, batch, table[-1], course)
            found = student(noisy, course.times[step * SUBSTEPS], batch)
            return (found.float() - wanted).square().mean()

    run.go(loss_of)
    return run

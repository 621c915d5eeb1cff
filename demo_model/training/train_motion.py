"""Stage two: the UNet with its text and image encoders, on latents of whole clips."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .clips import View, caption_rows, frame_indices, practise, render, training_seeds
from .conditioning import image_latents, image_states, text_states, token_table
from .hashing import uniform
from .loop import Plan, Run
from .networks import Networks, build_scheduler
from .painting import Brush
from .speed import flatten_time
from .vocabulary import captions

FIRST_SEED = 2**36  # apart from the autoencoder's
NOTHING = 0.10  # share trained without text and picture embedding, as the unconditional branch is called
REUSE = 2  # steps that share a batch of clips, each with its own noise and times
SHIMMER = 0.5  # weight of errors that change from frame to frame
NO_PICTURE = 0.10  # share trained with text alone, as the unconditional branch is with a negative prompt


@dataclass
class Batch:
    """One step's clean latents (B, 4, F, h, w) and the networks' conditioning for them."""

    latents: Tensor
    picture: Tensor
    tokens: Tensor
    fps: Tensor
    with_picture: Tensor


class MotionNetworks(nn.Module):
    """UNet and encoders as one function, so that they compile and train as one."""

    def __init__(self, networks: Networks) -> None:
        super().__init__()
        self.unet: Any = networks.unet
        self.text, self.vision = networks.text, networks.vision

    def forward(self, noisy: Tensor, timestep: Tensor, batch: Batch) -> Tensor:
        """Predicted velocity, (B, 4, F, h, w)."""
        states = text_states(self.text, batch.tokens)
        seen = image_states(self.vision, batch.picture) * batch.with_picture[:, None, None]
        known = image_latents(batch.latents[:, :, 0], batch.latents.shape[2])
        return self.unet(
            noisy, timestep, fps=batch.fps, image_latents=known, image_embeddings=seen,
            encoder_hidden_states=states, return_dict=False,
        )[0]  # fmt: skip


def make_batch(
    seeds: Tensor,
    encode: Callable[[Tensor], Tensor],
    scale: float,
    table: Tensor,
    brush: Brush,
    view: View,
) -> Batch:
    """Renders clips and encodes them; table holds the captions' tokens, the last row those of no text."""
    clips = practise(seeds)
    indices = frame_indices(len(seeds), view.frames, seeds.device)
    video = render(clips, indices, view.pixels, brush, view.reach)
    latents = encode(video.flatten(0, 1) * 2 - 1) * scale
    latents = latents.view(len(seeds), view.frames, *latents.shape[1:]).transpose(1, 2)
    drop = uniform(seeds, 9, 1)[:, 0]
    rows = torch.where(drop < NOTHING, len(table) - 1, caption_rows(clips))
    return Batch(latents, video[:, 0], table[rows], clips.fps, (drop >= NOTHING + NO_PICTURE).float())


def batches(vae: Any, plan: Plan, device: torch.device, table: Tensor, view: View) -> Callable[[int], Batch]:
    """A function from the first of a batch's seeds to the batch; see `make_batch`."""
    brush = Brush.on(device, view.whole_pixels, plan.compile)
    scale = float(vae.config["scaling_factor"])

    def mean_of(images: Tensor) -> Tensor:
        return vae.quant_conv(vae.encoder(images))[:, :4].float()

    encode = torch.compile(mean_of, dynamic=False) if plan.compile else mean_of

    @torch.no_grad()
    def batch_from(first: int) -> Batch:
        return make_batch(training_seeds(first, plan.batch, device), encode, scale, table, brush, view)

    return batch_from


def velocity_loss(model: MotionNetworks, batch: Batch, alphas: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of the predicted velocity at random times, and of its change from frame to frame.

    A clip's mean error hardly shows; one that comes and goes is seen as shimmer.
    """
    count = len(batch.fps)
    times = torch.randint(0, len(alphas), (count,), generator=generator, device=alphas.device)
    noise = torch.randn(batch.latents.shape, generator=generator, device=alphas.device)
    alpha = alphas[times].view(-1, 1, 1, 1, 1)
    signal, spread = alpha.sqrt(), (1 - alpha).sqrt()
    predicted = model(signal * batch.latents + spread * noise, times, batch)
    error = predicted.float() - (signal * noise - spread * batch.latents)
    return error.square().mean() + SHIMMER * error.diff(dim=2).square().mean()


def without_dropout(module: nn.Module) -> None:
    """Turns dropout off: the data never repeats."""
    for part in module.modules():
        if isinstance(part, nn.Dropout):
            part.p = 0.0


def train_motion(networks: Networks, plan: Plan, device: torch.device, tokenizer: Any, view: View) -> Run:
    """Trains UNet and encoders; the autoencoder in `networks` is used as it is."""
    vae: Any = networks.vae.to(device).eval().requires_grad_(False)
    model = MotionNetworks(networks).to(device).train()
    without_dropout(model)
    flatten_time(networks.unet)
    run = Run(plan, {"unet": networks.unet, "text_encoder": networks.text, "image_encoder": networks.vision},
              {"stage": "motion", "scaling_factor": vae.config["scaling_factor"]})  # fmt: skip
    table = token_table(tokenizer, [*captions(), ""]).to(device)
    batch_from = batches(vae, plan, device, table, view)
    alphas = build_scheduler().alphas_cumprod.to(device)
    generator = torch.Generator(device)
    held: dict[int, Batch] = {}
    if plan.compile:
        model.unet = torch.compile(model.unet, dynamic=False)

    def loss_of(step: int) -> Tensor:
        generator.manual_seed(step)
        drawn = step // REUSE
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            if drawn not in held:
                held.clear()
                held[drawn] = batch_from(FIRST_SEED + plan.first_clip + drawn * plan.batch)
            return velocity_loss(model, held[drawn], alphas, generator)

    run.go(loss_of)
    return run

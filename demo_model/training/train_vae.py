"""Stage one: the autoencoder, on pairs of consecutive frames of training clips."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .clips import View, practise, training_seeds, view_pairs
from .loop import Plan, Run
from .measure import carried_back
from .networks import Networks
from .painting import Brush
from .speed import ExactConvolution

FIRST_SEED = 0
PAIRS = 4  # pairs of consecutive frames taken of each clip
PER_CLIP = 2 * PAIRS
KL_WEIGHT = 2e-5
BAND_WEIGHTS = (0.6, 0.3, 0.15)  # of errors by bands of frequencies, the finest first
MOVED_SHARE = 0.25  # share of each batch that is decoded from a latent moved as a picture would be
SHIMMER = 1.0  # weight of changes from frame to frame beside the motion
ANCHOR = 0.1  # weight that keeps latents where a trained UNet expects them


@dataclass
class Views:
    """A batch: frames (N, 3, H, W) in [-1, 1], pairs side by side, and the pose from first to second (N / 2, 4)."""

    frames: Tensor
    poses: Tensor


def views_of(seeds: Tensor, view: View, brush: Brush | None = None) -> Views:
    """PAIRS pairs of each clip."""
    frames, poses = view_pairs(practise(seeds), PAIRS, view.pixels, brush, view.reach)
    return Views(frames.flatten(0, 1) * 2 - 1, poses.flatten(0, 1))


def small_motion(count: int, generator: torch.Generator) -> Tensor:
    """Random similarity transforms near the identity, (count, 2, 3) as `affine_grid` takes them."""
    u = torch.rand(count, 4, generator=generator, device=generator.device) * 2 - 1
    scale, angle = torch.exp(u[:, 0] * 0.2), u[:, 1] * 0.35
    cos, sin, shift = torch.cos(angle) * scale, torch.sin(angle) * scale, u[:, 2:] * 0.15
    rows = [torch.stack([cos, -sin, shift[:, 0]], 1), torch.stack([sin, cos, shift[:, 1]], 1)]
    return torch.stack(rows, dim=1)


def move(images: Tensor, transforms: Tensor) -> Tensor:
    """Moves images or latents (N, C, H, W) by transforms (N, 2, 3)."""
    where = F.affine_grid(transforms, list(images.shape), align_corners=False).to(images.dtype)
    return F.grid_sample(images, where, mode="bilinear", padding_mode="reflection", align_corners=False)


def means_of(vae: Any, frames: Tensor) -> Tensor:
    """Posterior means of frames, unscaled."""
    return vae.quant_conv(vae.encoder(frames)).float()[:, :4]


def by_bands(error: Tensor) -> Tensor:
    """Weighted mean absolute error of each octave of frequencies: a mean over all alone buys smoothness with detail."""
    total = error.new_zeros(())
    for weight in BAND_WEIGHTS:
        coarse = F.avg_pool2d(error, 2)
        smooth = F.interpolate(coarse, scale_factor=2, mode="bilinear", align_corners=False)
        total = total + weight * (error - smooth).abs().mean()
        error = coarse
    return total


def shimmer(decoded: Tensor, poses: Tensor) -> Tensor:
    """Mean absolute difference of decoded pairs once their motion is undone, as in `measure.warping_error`."""
    gap, inside = carried_back(decoded[::2], decoded[1::2], poses)
    return (gap.abs() * inside).sum() / (3 * inside.sum()).clamp_min(1)


def vae_loss(
    vae: Any, frames: Tensor, poses: Tensor, noise: Tensor, transforms: Tensor, anchor: Tensor | None
) -> Tensor:
    """Squared and absolute error, detail, shimmer, a light pull to a unit Gaussian, and latents that move as pictures.

    The last makes a picture's motion a motion of its latents, which a small UNet learns far sooner. anchor
    (N, 4, h, w) are latents to stay near to.
    """
    moments = vae.quant_conv(vae.encoder(frames)).float()
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-20, 10)
    latents = mean + noise * torch.exp(0.5 * log_variance)
    moved = len(transforms)
    latents = torch.cat([move(latents[:moved], transforms), latents[moved:]])
    target = torch.cat([move(frames[:moved], transforms), frames[moved:]])
    decoded = vae.decoder(vae.post_quant_conv(latents)).float()
    error = decoded - target
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    loss = error.square().mean() + 0.1 * error.abs().mean() + by_bands(error) + KL_WEIGHT * kl
    loss = loss + SHIMMER * shimmer(decoded[moved:], poses[moved // 2 :])
    return loss if anchor is None else loss + ANCHOR * (mean - anchor).square().mean()


def anchored(vae: Any, compiled: bool) -> Callable[[Tensor], Tensor]:
    """The latents of the autoencoder's present weights, unchanged by later training."""
    former = deepcopy(vae).eval().requires_grad_(False)

    def encode(frames: Tensor) -> Tensor:
        return means_of(former, frames)

    return torch.compile(encode, dynamic=False) if compiled else encode


def train_vae(networks: Networks, plan: Plan, device: torch.device, view: View, keep_latents: bool = False) -> Run:
    """Trains the autoencoder and leaves its averaged weights in the state folder.

    keep_latents holds the latents near those of the weights in `networks`, so that a UNet that knows them
    stays of use.
    """
    vae = networks.vae.to(device).train()
    vae.decoder.conv_out.__class__ = ExactConvolution
    former = anchored(vae, plan.compile) if keep_latents else None
    kept = {"scaling_factor": vae.config["scaling_factor"]} if keep_latents else {}
    run = Run(plan, {"vae": vae}, {"stage": "vae", **kept})
    loss_function = torch.compile(vae_loss, dynamic=False) if plan.compile else vae_loss
    brush = Brush.on(device, view.whole_pixels, plan.compile)
    generator = torch.Generator(device)
    clips = plan.batch // PER_CLIP
    latent_shape = (plan.batch, 4, view.pixels // 8, view.pixels // 8)

    def loss_of(step: int) -> Tensor:
        generator.manual_seed(step)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            with torch.no_grad():
                seeds = training_seeds(FIRST_SEED + plan.first_clip + step * clips, clips, device)
                with torch.autocast(device.type, enabled=False):
                    views = views_of(seeds, view, brush)
                noise = torch.randn(latent_shape, generator=generator, device=device)
                transforms = small_motion(int(PAIRS * clips * MOVED_SHARE) * 2, generator)
                anchor = former(views.frames) if former else None
            return loss_function(vae, views.frames, views.poses, noise, transforms, anchor)

    run.go(loss_of)
    return run


@torch.no_grad()
def latent_scale(vae: Any, device: torch.device, view: View) -> float:
    """One over the standard deviation of training latents: the published `scaling_factor`."""
    frames = views_of(training_seeds(FIRST_SEED, 64, device), view, Brush.on(device, view.whole_pixels)).frames
    return round(float(1 / means_of(vae, frames).std()), 5)

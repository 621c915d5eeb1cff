"""Stage one: the autoencoder, on single frames of training clips."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .clips import FRAMES, draw, render, training_seeds
from .hashing import uniform
from .loop import Plan, Run
from .networks import Networks
from .pictures import Brush

FIRST_SEED = 0
PER_CLIP = 8  # frames taken of each clip
KL_WEIGHT = 5e-5
WARP_SHARE = 0.25  # share of each batch that is decoded from a latent moved as a picture would be


def frames_of(seeds: Tensor, pixels: int, brush: Brush | None = None) -> Tensor:
    """PER_CLIP frames of each clip: (B * PER_CLIP, 3, pixels, pixels) in [-1, 1]."""
    indices = (uniform(seeds, 7, PER_CLIP) * FRAMES).floor()
    return render(draw(seeds), indices, pixels, brush).flatten(0, 1) * 2 - 1


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


def vae_loss(vae: torch.nn.Module, frames: Tensor, noise: Tensor, transforms: Tensor) -> Tensor:
    """Squared and absolute error, a light pull towards a unit Gaussian, and latents that move as pictures do.

    The last makes a picture's motion a motion of its latents, which a small UNet learns far sooner.
    """
    moments = vae.quant_conv(vae.encoder(frames)).float()  # type: ignore[operator]
    mean, log_variance = moments.chunk(2, dim=1)
    log_variance = log_variance.clamp(-20, 10)
    latents = mean + noise * torch.exp(0.5 * log_variance)
    moved = len(transforms)
    latents = torch.cat([move(latents[:moved], transforms), latents[moved:]])
    target = torch.cat([move(frames[:moved], transforms), frames[moved:]])
    error = vae.decoder(vae.post_quant_conv(latents)).float() - target  # type: ignore[operator]
    kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).mean()
    return error.square().mean() + 0.1 * error.abs().mean() + KL_WEIGHT * kl


def train_vae(networks: Networks, plan: Plan, device: torch.device, pixels: int) -> Run:
    """Trains the autoencoder and leaves its averaged weights and its scaling factor in the state folder."""
    vae = networks.vae.to(device).train()
    run = Run(plan, {"vae": vae}, {"stage": "vae"})
    loss_function = torch.compile(vae_loss, dynamic=False) if plan.compile else vae_loss
    brush = Brush.on(device, plan.compile)
    generator = torch.Generator(device)
    clips = plan.batch // PER_CLIP
    latent_shape = (plan.batch, 4, pixels // 8, pixels // 8)

    def loss_of(step: int) -> Tensor:
        generator.manual_seed(step)
        with torch.no_grad():
            frames = frames_of(training_seeds(FIRST_SEED + step * clips, clips, device), pixels, brush)
            noise = torch.randn(latent_shape, generator=generator, device=device)
            transforms = small_motion(int(plan.batch * WARP_SHARE), generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return loss_function(vae, frames, noise, transforms)

    run.go(loss_of)
    return run


@torch.no_grad()
def latent_scale(vae: torch.nn.Module, device: torch.device, pixels: int) -> float:
    """One over the standard deviation of training latents: the published `scaling_factor`."""
    frames = frames_of(training_seeds(FIRST_SEED, 64, device), pixels)
    latents = vae.encode(frames).latent_dist.mean  # type: ignore[operator]
    return round(float(1 / latents.std()), 5)

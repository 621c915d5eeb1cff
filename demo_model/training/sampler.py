"""A small sampler with the published pipeline's conventions, for judging the model while it is trained."""

from typing import Any

import torch
from torch import Tensor

from .conditioning import image_latents, image_states, text_states, token_table
from .networks import Networks, build_scheduler


def picture_latents(networks: Networks, pictures: Tensor) -> Tensor:
    """Scaled posterior means of pictures (B, 3, H, W) in [0, 1]: (B, 4, H / 8, W / 8)."""
    vae = networks.vae
    return vae.encode(pictures.to(vae.dtype) * 2 - 1).latent_dist.mean * vae.config["scaling_factor"]


def decode(networks: Networks, latents: Tensor) -> Tensor:
    """Latents (B, 4, F, h, w) -> frames (B, F, 3, H, W) in [0, 1], float32."""
    vae = networks.vae
    count, _, frames = latents.shape[:3]
    flat = latents.transpose(1, 2).flatten(0, 1).to(vae.dtype) / vae.config["scaling_factor"]
    seen = torch.cat([vae.decode(part).sample for part in flat.split(256)])
    return (seen.float() / 2 + 0.5).clamp(0, 1).view(count, frames, *seen.shape[1:])


def _branches(
    networks: Networks, tokenizer: Any, pictures: Tensor, prompts: list[str], negatives: list[str], frames: int
) -> dict[str, Tensor]:
    """Conditioning of the unconditional half, then the conditional half."""
    device = pictures.device
    states = text_states(networks.text, token_table(tokenizer, [*negatives, *prompts]).to(device))
    seen = image_states(networks.vision, pictures)
    known = image_latents(picture_latents(networks, pictures), frames)
    return {
        "encoder_hidden_states": states,
        "image_embeddings": torch.cat([torch.zeros_like(seen), seen]),
        "image_latents": torch.cat([known, known]),
    }


@torch.no_grad()
def sample(
    networks: Networks,
    tokenizer: Any,
    pictures: Tensor,
    prompts: list[str],
    fps: Tensor,
    noise: Tensor,
    steps: int = 30,
    guidance: float = 3.0,
    negatives: list[str] | None = None,
    spacing: str = "leading",
) -> Tensor:
    """Animates pictures (B, 3, H, W) in [0, 1]: fps (B,), noise (B, 4, F, h, w) -> frames (B, F, 3, H, W)."""
    dtype = networks.unet.dtype
    told = _branches(networks, tokenizer, pictures, prompts, negatives or [""] * len(prompts), noise.shape[2])
    scheduler: Any = build_scheduler()
    scheduler.register_to_config(timestep_spacing=spacing)
    scheduler.set_timesteps(steps, device=pictures.device)
    latents = noise * scheduler.init_noise_sigma
    if guidance == 1:
        told = {name: value.chunk(2)[1] for name, value in told.items()}
    count = 1 if guidance == 1 else 2
    for time in scheduler.timesteps:
        both = torch.cat([latents] * count).to(dtype)
        guess = networks.unet(both, time, fps=torch.cat([fps] * count), **told, return_dict=False)[0].float()
        if count == 2:
            without, with_prompt = guess.chunk(2)
            guess = without + guidance * (with_prompt - without)
        latents = scheduler.step(guess, time, latents, eta=0.0).prev_sample
    return decode(networks, latents)


def initial_noise(seeds: Tensor, frames: int, pixels: int) -> Tensor:
    """Gaussian noise of each clip from its own seed, equal on every device: (B, 4, F, h, w)."""
    edge = pixels // 8
    rows = [
        torch.randn(4, frames, edge, edge, generator=torch.Generator().manual_seed(int(seed) & 0x7FFFFFFF))
        for seed in seeds
    ]
    return torch.stack(rows).to(seeds.device)

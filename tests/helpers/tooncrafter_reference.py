"""ToonCrafter's VAE written out plainly over a file's tensors in their published names: scores, softmax and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import conv2d, conv3d, group_norm, interpolate, linear, pad, silu

from .single_files import temporal_vae_name

Tensors = Mapping[str, torch.Tensor]
LEVELS, HEADS = 4, 8
INNER = [0, *range(2, 14), 15]
"""Frames of the second decoding, of which the two in the middle are taken."""


def published_names(stored: Tensors) -> dict[str, torch.Tensor]:
    """The VAE's tensors as its publishers name them."""
    refining = {name: tensor for name, tensor in stored.items() if name.startswith("decoder.attn_refinement.")}
    others = (temporal_vae_name(name, tensor) for name, tensor in stored.items() if name not in refining)
    return {**dict(others), **refining}


class PublishedVae:
    """The VAE of a folder as a pipeline calls it: its decoder sees the two pictures that were encoded last."""

    device, dtype, config = torch.device("cpu"), torch.float32, SimpleNamespace(scaling_factor=0.18215)

    def __init__(self, folder: Path) -> None:
        self.weights = published_names(load_file(folder / "diffusion_pytorch_model.safetensors"))
        self.images: list[torch.Tensor] = []

    def encode(self, image: torch.Tensor) -> Any:
        self.images = [*self.images[-1:], image]
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=encode(self.weights, image)[0]))

    def decode(self, latents: torch.Tensor) -> Any:
        references = encode(self.weights, torch.cat(self.images))[1]
        whole, inner = (decode(self.weights, latents[part], references) for part in (list(range(16)), INNER))
        return SimpleNamespace(sample=torch.cat([whole[:7], inner[6:8], whole[9:]]))


def norm(w: Tensors, name: str, x: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return group_norm(x, 32, w[f"{name}.weight"], w[f"{name}.bias"], eps)


def conv(w: Tensors, name: str, x: torch.Tensor, padding: int = 1, stride: int = 1) -> torch.Tensor:
    return conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], stride, padding)


def over_frames(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return conv3d(x, w[f"{name}.weight"], w[f"{name}.bias"], padding=(1, 0, 0))


def residual(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    h = conv(w, f"{name}.conv1", silu(norm(w, f"{name}.norm1", x)))
    h = conv(w, f"{name}.conv2", silu(norm(w, f"{name}.norm2", h)))
    shortcut = f"{name}.nin_shortcut"
    x = (conv(w, shortcut, x, padding=0) if f"{shortcut}.weight" in w else x) + h
    if f"{name}.mix_factor" not in w:
        return x
    spatial = x.transpose(0, 1)[None]
    h = over_frames(w, f"{name}.time_stack.in_layers.2", silu(norm(w, f"{name}.time_stack.in_layers.0", spatial, 1e-5)))
    h = over_frames(w, f"{name}.time_stack.out_layers.3", silu(norm(w, f"{name}.time_stack.out_layers.0", h, 1e-5)))
    share = torch.sigmoid(w[f"{name}.mix_factor"])
    return (share * (spatial + h) + (1 - share) * spatial)[0].transpose(0, 1)


def softmax_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def middle(w: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    x = residual(w, f"{name}.block_1", x)
    h = norm(w, f"{name}.attn_1.norm", x)
    q, k, v = (conv(w, f"{name}.attn_1.{each}", h, padding=0).flatten(2).mT for each in "qkv")
    h = softmax_attention(q, k, v).mT.unflatten(2, x.shape[2:])
    return residual(w, f"{name}.block_2", x + conv(w, f"{name}.attn_1.proj_out", h, padding=0))


def encode(w: Tensors, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Means [2, 4, h, w], and the states behind every level and behind the first layer."""
    x = start = conv(w, "encoder.conv_in", images)
    states = []
    for level in range(LEVELS):
        for block in range(2):
            x = residual(w, f"encoder.down.{level}.block.{block}", x)
        states.append(x)
        if level < LEVELS - 1:
            x = conv(w, f"encoder.down.{level}.downsample.conv", pad(x, (0, 1, 0, 1)), padding=0, stride=2)
    x = conv(w, "encoder.conv_out", silu(norm(w, "encoder.norm_out", middle(w, "encoder.mid", x))))
    return conv(w, "quant_conv", x, padding=0)[:, :4], [*states, start]


def refined(w: Tensors, name: str, x: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    if f"{name}.conv.weight" in w:
        first, last = conv(w, f"{name}.conv", reference, padding=0)
        return torch.stack([x[0] + first, *x[1:-1], x[-1] + last])
    context = torch.cat([reference[0].flatten(1).mT, reference[1].flatten(1).mT])
    frames = []
    for frame in x:
        h = norm(w, f"{name}.norm", frame[None])[0].flatten(1).mT
        q, k, v = (
            linear(each, w[f"{name}.to_{part}.weight"]).unflatten(1, (HEADS, -1)).transpose(0, 1)
            for each, part in ((h, "q"), (context, "k"), (context, "v"))
        )
        h = softmax_attention(q, k, v).transpose(0, 1).flatten(1)
        h = linear(h, w[f"{name}.to_out.0.weight"], w[f"{name}.to_out.0.bias"])
        frames.append(frame + h.mT.unflatten(1, frame.shape[1:]))
    return torch.stack(frames)


def decode(w: Tensors, latents: torch.Tensor, references: Sequence[torch.Tensor]) -> torch.Tensor:
    x = middle(w, "decoder.mid", conv(w, "decoder.conv_in", latents))
    for level in reversed(range(LEVELS)):
        for block in range(3):
            x = residual(w, f"decoder.up.{level}.block.{block}", x)
        x = refined(w, f"decoder.attn_refinement.{level}", x, references[level])
        if level:
            x = conv(w, f"decoder.up.{level}.upsample.conv", interpolate(x, scale_factor=2.0))
    x = refined(w, f"decoder.attn_refinement.{LEVELS}", silu(norm(w, "decoder.norm_out", x)), references[-1])
    x = conv(w, "decoder.conv_out", x).transpose(0, 1)[None]
    return over_frames(w, "decoder.conv_out.time_mix_conv", x)[0].transpose(0, 1)

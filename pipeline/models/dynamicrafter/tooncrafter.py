"""ToonCrafter's decoder (Xing et al. 2024, arXiv:2405.17933): frames between two drawings, with both in view.

Its VAE is Stable Video Diffusion's, whose decoder sees the encoder's hidden states of the first and the last picture
at every level: added to the ends of the clip where the plane is large, by cross-attention from every frame where it is
small. PyTorch's own attention keeps no table of scores, which would take 54 GB at 320x512.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional

from ....common.errors import InputError
from ..svd.networks import TemporalVaeDecoder, double, resnet_over_frames, to_frames, to_volume

REFERENCES = 2
"""The first picture and the last one."""
FRAMES = 16
MIDDLE = slice(FRAMES // 2 - 1, FRAMES // 2 + 1)
"""Frames that are taken from a second decoding, which leaves out the frames beside the ends."""
INNER = tuple(number for number in range(FRAMES) if number not in (1, FRAMES - 2))

REFERENCE_NAMES = ("reference_0", "reference_1", "reference_2", "reference_3", "reference_in")
"""In the order in which `ReferenceEncoder` gives them behind the latents: of each level, and of the first layer."""
LEVELS = len(REFERENCE_NAMES) - 1

Decode = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], torch.Tensor]
"""`ReferenceDecoder.forward` over latents and references by name."""


class ReferenceEncoder(torch.nn.Module):
    """The VAE's encoder with the hidden states that the decoder sees."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.encoder, self.quant_conv = vae.encoder, vae.quant_conv

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """From image [2, 3, h*8, w*8] in -1..1, the first and the last one, to the posterior's means [2, 4, h, w], not
        yet scaled, the states behind each level [2, channels, ...], the largest plane first, and those behind the
        first layer."""
        encoder = self.encoder
        x = start = encoder.conv_in(image)
        levels = []
        for block in encoder.down_blocks:
            for resnet in block.resnets:
                x = resnet(x, None)
            levels.append(x)
            for sampler in block.downsamplers or ():
                x = sampler(x)
        x = encoder.conv_out(encoder.conv_act(encoder.conv_norm_out(encoder.mid_block(x))))
        return (self.quant_conv(x).chunk(2, dim=1)[0], *levels, start)


class ReferenceDecoder(TemporalVaeDecoder):
    """The VAE's decoder, in which every frame of a clip sees the others and both references."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        latents: torch.Tensor,
        reference_0: torch.Tensor,
        reference_1: torch.Tensor,
        reference_2: torch.Tensor,
        reference_3: torch.Tensor,
        reference_in: torch.Tensor,
    ) -> torch.Tensor:
        """From unscaled latents [frames, 4, h, w] and the references of `ReferenceEncoder`, [2, channels, ...] each, to
        image [frames, 3, h*8, w*8] in -1..1."""
        decoder, frames = self.decoder, latents.shape[0]
        *refine, refine_last = decoder.attn_refinement
        seen = (reference_3, reference_2, reference_1, reference_0)
        first, *rest = decoder.mid_block.resnets
        x = resnet_over_frames(decoder.conv_in(latents), first, None, frames)
        for attention, resnet in zip(decoder.mid_block.attentions, rest, strict=False):
            x = resnet_over_frames(attention(x), resnet, None, frames)
        for block, layer, reference in zip(decoder.up_blocks, reversed(refine), seen, strict=True):
            for resnet in block.resnets:
                x = resnet_over_frames(x, resnet, None, frames)
            x = refined(x, layer, reference)
            for sampler in block.upsamplers or ():
                x = double(x, sampler)
        x = refined(decoder.conv_act(decoder.conv_norm_out(x)), refine_last, reference_in)
        return to_frames(decoder.time_conv_out(to_volume(decoder.conv_out(x), frames)))


def refined(x: torch.Tensor, layer: Any, reference: torch.Tensor) -> torch.Tensor:
    """x [frames, channels, h, w] with what a layer takes of a reference [2, channels, h, w]."""
    if not hasattr(layer, "to_q"):
        first, last = layer.conv(reference).split(1)
        return torch.cat([x[:1] + first, x[1:-1], x[-1:] + last])
    places, heads = x.shape[2] * x.shape[3], layer.heads
    q = layer.to_q(layer.norm(x).flatten(2).transpose(1, 2))
    both = reference.flatten(2).transpose(1, 2).reshape(1, REFERENCES * places, -1)
    k, v = (part(both).expand(x.shape[0], -1, -1) for part in (layer.to_k, layer.to_v))
    q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))
    attended = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    return x + layer.to_out[0](attended).transpose(1, 2).unflatten(2, x.shape[2:])


def decode_between(decode: Decode, latents: torch.Tensor, references: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A clip [16, 3, h*8, w*8] of unscaled latents [16, 4, h, w], all frames together, as published: its two frames in
    the middle come from a second decoding without the neighbours of the ends.

    Raises InputError for another number of frames.
    """
    if len(latents) != FRAMES:
        raise InputError(f"ToonCrafter decodes {FRAMES} frames together, found {len(latents)}.")
    frames = decode(latents, references).clone()
    frames[MIDDLE] = decode(latents[list(INNER)], references)[MIDDLE.start - 1 : MIDDLE.stop - 1]
    return frames

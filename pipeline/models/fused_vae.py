"""The picture VAE's decoder by the functions of `fused.blocks`."""

from __future__ import annotations

from typing import Any

import torch

from ..fused import blocks
from .parts import VaeDecoder

REWRITES = ("channels_last", "channel_norm", "phase_upsample", "plain_attention")


def attend(at: blocks.Activation, attention: Any, on: blocks.On) -> blocks.Activation:
    """The attention in a VAE's middle: norm, one head among the places of each frame, and the input added."""
    h = blocks.group_norm(at, attention.group_norm, silu=False)
    return blocks.measured(at.x + attention.to_out[0](blocks.attend_places(h, attention, on)), on)


class FusedVaeDecoder(VaeDecoder):
    """`VaeDecoder` with the given rewrites: the same result up to rounding."""

    def __init__(self, vae: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(vae)
        self.on = frozenset(rewrites)
        blocks.prepare(self, self.on)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """From unscaled latents [frames, 4, h, w] to image [frames, 3, h*8, w*8] in -1..1."""
        x = self.post_quant_conv(latents).permute(0, 2, 3, 1).contiguous().unsqueeze(0)
        conv_in, conv_out = self.decoder.conv_in, self.decoder.conv_out
        at = self._middle(blocks.added(blocks.conv2d(x, conv_in), None, conv_in.bias, self.on))
        for block in self.decoder.up_blocks:
            for resnet in block.resnets:
                at = blocks.resnet(at, resnet, None, self.on)
            for sampler in block.upsamplers or ():
                at = blocks.upsample(at, sampler, self.on)
        x = blocks.conv2d(blocks.group_norm(at, self.decoder.conv_norm_out), conv_out) + conv_out.bias
        return x.squeeze(0).permute(0, 3, 1, 2)

    def _middle(self, at: blocks.Activation) -> blocks.Activation:
        first, *rest = self.decoder.mid_block.resnets
        at = blocks.resnet(at, first, None, self.on)
        for attention, resnet in zip(self.decoder.mid_block.attentions, rest, strict=True):
            at = blocks.resnet(attend(at, attention, self.on), resnet, None, self.on)
        return at

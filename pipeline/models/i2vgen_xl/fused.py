"""I2VGen-XL's denoiser by the functions of `fused.blocks`: the same result up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...fused import blocks as fused
from .networks import DenoiserNetwork, attends

DENOISER_REWRITES = tuple(name for name in fused.REWRITES if name != "plain_attention")


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of every layer of `FusedDenoiser` beside its activation."""

    context: torch.Tensor
    offsets: fused.Offsets
    folded: fused.Folded
    """By cross-attention, from the context."""


class FusedDenoiser(DenoiserNetwork):
    """`DenoiserNetwork` by the functions of `fused.blocks`, with the given rewrites: the same result up to rounding.

    Takes sides that halve evenly at every level alone.
    """

    def __init__(self, unet: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(unet)
        self.on = frozenset(rewrites)
        fused.prepare(self, self.on)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """As `DenoiserNetwork.forward`. With `shared_prefix` the first batch item stands for all but in `context`."""
        if "shared_prefix" in self.on:
            sample, timestep, image_cond, fps_emb = (x[:1] for x in (sample, timestep, image_cond, fps_emb))
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + fps_emb
        x = torch.cat([sample, image_cond], dim=1).permute(0, 2, 3, 4, 1).contiguous()
        given = self._given(emb, context)
        at = fused.added(fused.conv2d(x, self.conv_in), None, self.conv_in.bias, self.on)
        at = fused.temporal_transformer(at, self.transformer_in, self.on)
        skips = [at]
        for block in self.down_blocks:
            for layer in range(len(block.resnets)):
                at = self._layer(block, layer, at, given)
                skips.append(at)
            for sampler in block.downsamplers or ():
                at = fused.downsample(at, sampler, self.on)
                skips.append(at)
        at = self._middle(at, given)
        for block in self.up_blocks:
            for layer in range(len(block.resnets)):
                at = self._layer(block, layer, fused.joined(at, skips.pop()), given)
            for sampler in block.upsamplers or ():
                at = fused.upsample(at, sampler, self.on)
        x = fused.conv2d(fused.group_norm(at, self.conv_norm_out), self.conv_out) + self.conv_out.bias
        return x.permute(0, 4, 1, 2, 3)

    def _given(self, emb: torch.Tensor, context: torch.Tensor) -> LayerInputs:
        blocks = [*self.down_blocks, self.mid_block, *self.up_blocks]
        resnets = [resnet for block in blocks for resnet in block.resnets]
        models = [model for block in blocks if attends(block) for model in block.attentions]
        attentions = [block.attn2 for model in models for block in model.transformer_blocks]
        offsets = fused.time_offsets(emb, resnets, self.on)
        folded = fused.context_keys_values(context, attentions, self.on)
        return LayerInputs(
            context, dict(zip(resnets, offsets, strict=True)), dict(zip(attentions, folded, strict=True))
        )

    def _layer(self, block: Any, layer: int, at: fused.Activation, given: LayerInputs) -> fused.Activation:
        at = self._convolve(at, block, layer, given)
        return self._attend(at, block, layer, given) if attends(block) else at

    def _middle(self, at: fused.Activation, given: LayerInputs) -> fused.Activation:
        block = self.mid_block
        for layer in range(len(block.resnets)):
            if layer:
                at = self._attend(at, block, layer - 1, given)
            at = self._convolve(at, block, layer, given)
        return at

    def _convolve(self, at: fused.Activation, block: Any, layer: int, given: LayerInputs) -> fused.Activation:
        resnet = block.resnets[layer]
        at = fused.resnet(at, resnet, given.offsets[resnet], self.on)
        return fused.temporal_conv(at, block.temp_convs[layer], self.on)

    def _attend(self, at: fused.Activation, block: Any, layer: int, given: LayerInputs) -> fused.Activation:
        at = fused.spatial_transformer(at, block.attentions[layer], given.context, given.folded, self.on)
        return fused.temporal_transformer(at, block.temp_attentions[layer], self.on)

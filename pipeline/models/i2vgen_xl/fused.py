"""I2VGen-XL's denoiser by the functions of `fused.blocks`: the same result up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...fused import blocks as fused
from .networks import DenoiserNetwork, attends, keep_shallow, shallow_layers

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
        return self._whole(sample, timestep, image_cond, fps_emb, context)[0]

    def _whole(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        at, given = self._start(sample, timestep, image_cond, fps_emb, context)
        skips = [at]
        for block in self.down_blocks:
            for layer in range(len(block.resnets)):
                at = self._layer(block, layer, at, given)
                skips.append(at)
            for sampler in block.downsamplers or ():
                at = fused.downsample(at, sampler, self.on)
                skips.append(at)
        at = self._middle(at, given)
        *blocks, last = self.up_blocks
        for block in blocks:
            for layer in range(len(block.resnets)):
                at = self._layer(block, layer, fused.joined(at, skips.pop()), given)
            for sampler in block.upsamplers or ():
                at = fused.upsample(at, sampler, self.on)
        first = len(last.resnets) - shallow_layers(last)
        at = self._rise(at, range(first), skips, given)
        deep = at.x
        at = self._rise(at, range(first, len(last.resnets)), skips, given)
        return self._finish(at), deep.movedim(-1, 2)

    def _start(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[fused.Activation, LayerInputs]:
        """The activation before the first block, and the inputs of all layers."""
        if "shared_prefix" in self.on:
            sample, timestep, image_cond, fps_emb = (x[:1] for x in (sample, timestep, image_cond, fps_emb))
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + fps_emb
        x = torch.cat([sample, image_cond], dim=1).permute(0, 2, 3, 4, 1).contiguous()
        at = fused.added(fused.conv2d(x, self.conv_in), None, self.conv_in.bias, self.on)
        return fused.temporal_transformer(at, self.transformer_in, self.on), self._inputs(emb, context)

    def _rise(
        self, at: fused.Activation, layers: range, skips: list[fused.Activation], given: LayerInputs
    ) -> fused.Activation:
        """Those layers of the last block; takes their skip connections from the list."""
        for layer in layers:
            at = self._layer(self.up_blocks[-1], layer, fused.joined(at, skips.pop()), given)
        return at

    def _finish(self, at: fused.Activation) -> torch.Tensor:
        x = fused.conv2d(fused.group_norm(at, self.conv_norm_out), self.conv_out) + self.conv_out.bias
        return x.permute(0, 4, 1, 2, 3)

    def _inputs(self, emb: torch.Tensor, context: torch.Tensor) -> LayerInputs:
        found = (*self.down_blocks, self.mid_block, *self.up_blocks)
        blocks = [block for block in found if block is not None]
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


class FusedDeep(FusedDenoiser):
    """`DeepNetwork` by the functions of `fused.blocks`."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DeepNetwork.forward`."""
        return self._whole(sample, timestep, image_cond, fps_emb, context)


class FusedShallow(FusedDenoiser):
    """`ShallowNetwork` by the functions of `fused.blocks`."""

    def __init__(self, unet: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(unet, rewrites)
        keep_shallow(self)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
        deep: torch.Tensor,
    ) -> torch.Tensor:
        """As `ShallowNetwork.forward`."""
        at, given = self._start(sample, timestep, image_cond, fps_emb, context)
        skips, last = [at], self.up_blocks[-1]
        for layer in range(shallow_layers(last) - 1):
            skips.append(self._layer(self.down_blocks[0], layer, skips[-1], given))
        held = fused.measured(deep.movedim(2, -1).contiguous(), self.on)
        layers = range(len(last.resnets) - shallow_layers(last), len(last.resnets))
        return self._finish(self._rise(held, layers, skips, given))

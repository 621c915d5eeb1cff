"""The UNet of diffusers' 3D blocks by the functions of `fused.blocks`: the same result up to rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..fused import blocks as fused
from .deep_features import shallow_layers
from .unet3d import UNet3D, attends

REWRITES = tuple(name for name in fused.REWRITES if name != "plain_attention")


@dataclass(frozen=True)
class LayerInputs:
    """Inputs of every layer of `FusedUNet3D` beside its activation."""

    offsets: fused.Offsets
    attend_context: fused.AttendContext


class FusedUNet3D(UNet3D):
    """`UNet3D` with the given rewrites, for sides that halve evenly at every level."""

    def __init__(self, unet: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(unet)
        self.on = frozenset(rewrites)
        fused.prepare(self, self.on)

    @property
    def blocks(self) -> list[Any]:
        """Every block in the order in which the signal meets it."""
        found = [*self.down_blocks, self.mid_block, *self.up_blocks]
        return [block for block in found if block is not None]

    @property
    def cross_attentions(self) -> list[Any]:
        """Every layer's attention to the context, in the same order."""
        models = [model for block in self.blocks if attends(block) for model in block.attentions]
        return [block.attn2 for model in models for block in model.transformer_blocks]

    def predict_fused(self, x: torch.Tensor, emb: torch.Tensor, attend_context: fused.AttendContext) -> torch.Tensor:
        """From x [batch or 1, frames, h, w, channels] and emb [batch or 1, embedding] to the prediction of every
        branch of the context, [batch, frames, h, w, channels]."""
        return self.predict_fused_deep(x, emb, attend_context)[0]

    def predict_fused_deep(
        self, x: torch.Tensor, emb: torch.Tensor, attend_context: fused.AttendContext
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction of `predict_fused`, and the deep features [batch, frames, h, w, channels]."""
        given = LayerInputs(self._offsets(emb), attend_context)
        at = self._first(x)
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
            at = self._rise(block, at, range(len(block.resnets)), skips, given)
            for sampler in block.upsamplers or ():
                at = fused.upsample(at, sampler, self.on)
        first = len(last.resnets) - shallow_layers(last)
        at = self._rise(last, at, range(first), skips, given)
        deep = at.x
        return self._last(self._rise(last, at, range(first, len(last.resnets)), skips, given)), deep

    def predict_fused_shallow(
        self, x: torch.Tensor, emb: torch.Tensor, attend_context: fused.AttendContext, deep: torch.Tensor
    ) -> torch.Tensor:
        """The prediction of `predict_fused` from the deep features: the same where they are of the same call."""
        given, last = LayerInputs(self._offsets(emb), attend_context), self.up_blocks[-1]
        skips, count = [self._first(x)], shallow_layers(last)
        for layer in range(count - 1):
            skips.append(self._layer(self.down_blocks[0], layer, skips[-1], given))
        held = fused.measured(deep, self.on)
        layers = range(len(last.resnets) - count, len(last.resnets))
        return self._last(self._rise(last, held, layers, skips, given))

    def _first(self, x: torch.Tensor) -> fused.Activation:
        at = fused.added(fused.conv2d(x, self.conv_in), None, self.conv_in.bias, self.on)
        return fused.temporal_transformer(at, self.transformer_in, self.on)

    def _rise(
        self, block: Any, at: fused.Activation, layers: range, skips: list[fused.Activation], given: LayerInputs
    ) -> fused.Activation:
        """Those layers of a block on the way up; takes their skip connections from the list."""
        for layer in layers:
            at = self._layer(block, layer, fused.joined(at, skips.pop()), given)
        return at

    def _last(self, at: fused.Activation) -> torch.Tensor:
        return fused.conv2d(fused.group_norm(at, self.conv_norm_out), self.conv_out) + self.conv_out.bias

    def _offsets(self, emb: torch.Tensor) -> fused.Offsets:
        resnets = [resnet for block in self.blocks for resnet in block.resnets]
        return dict(zip(resnets, fused.time_offsets(emb, resnets, self.on), strict=True))

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
        at = fused.spatial_transformer(at, block.attentions[layer], given.attend_context, self.on)
        return fused.temporal_transformer(at, block.temp_attentions[layer], self.on)

"""Stable Video Diffusion's denoiser and decoder by the functions of `fused.blocks`: the same results up to rounding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from ...fused import blocks as fused
from .. import fused_vae
from ..deep_features import shallow_layers
from .networks import DenoiserNetwork, TemporalVaeDecoder, keep_shallow

DENOISER_REWRITES = (
    "channels_last",
    "joined_embeddings",
    "fused_qkv",
    "gated_gelu",
    "residual_products",
    "short_attention",
    "channel_norm",
    "phase_upsample",
)
DECODER_REWRITES = fused_vae.REWRITES


@dataclass(frozen=True)
class _LayerInputs:
    """Inputs of every layer beside its activation."""

    offsets: fused.Offsets
    constants: Iterator[tuple[torch.Tensor, torch.Tensor]]
    """Frame embedding and cross-attention result of each transformer."""


def _everywhere(constant: torch.Tensor) -> torch.Tensor:
    """[batch, channels] for each place of each frame."""
    return constant[:, None, None, None]


def _layer(at: fused.Stream, layer: Any, attended: torch.Tensor, on: fused.On) -> fused.Stream:
    """A layer among the places of each frame; `attended` [batch, channels] is the result of cross-attention."""
    at = at.add(fused.attend_places(layer.norm1(at.read()), layer.attn1, on), layer.attn1.to_out[0], on)
    at = at.wait(_everywhere(attended))
    return at.add(fused.gated(layer.norm3(at.read()), layer.ff, on), layer.ff.net[2], on)


def _temporal_layer(at: fused.Stream, layer: Any, attended: torch.Tensor, on: fused.On) -> fused.Stream:
    """The same among the frames at each place, after a feed-forward of its own."""
    at = at.add(fused.gated(layer.norm_in(at.read()), layer.ff_in, on), layer.ff_in.net[2], on)
    at = at.add(fused.attend_frames(layer.norm1(at.read()), layer.attn1, on), layer.attn1.to_out[0], on)
    at = at.wait(_everywhere(attended))
    return at.add(fused.gated(layer.norm3(at.read()), layer.ff, on), layer.ff.net[2], on)


def _transformer(
    signal: fused.Activation, model: Any, frame_emb: torch.Tensor, attended: torch.Tensor, on: fused.On
) -> fused.Activation:
    """TransformerSpatioTemporalModel with frame_emb [1, frames, channels] and attended [batch, layers]."""
    h = model.proj_in(fused.group_norm(signal, model.norm, silu=False))
    share = fused.temporal_share(model.mixer)
    constants = iter(attended.split(model.channels, dim=1))
    for spatial, temporal in zip(model.spatial, model.temporal, strict=True):
        h = _layer(fused.Stream(h), spatial, next(constants), on).read()
        over_time = _temporal_layer(fused.Stream(h + frame_emb[:, :, None, None]), temporal, next(constants), on)
        h = (1 - share) * h + share * over_time.read()
    return fused.added(signal.x, fused.linear(h, model.proj_out), model.proj_out.bias, on)


class FusedDenoiser(DenoiserNetwork):
    """`DenoiserNetwork` by the functions of `fused.blocks`, with the given rewrites, for sides that halve evenly."""

    def __init__(self, unet: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(unet)
        self.on = frozenset(rewrites)
        fused.prepare(self, self.on)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        clip_emb: torch.Tensor,
        frame_emb: torch.Tensor,
        attended: torch.Tensor,
    ) -> torch.Tensor:
        """As `DenoiserNetwork.forward`."""
        return self._whole(sample, timestep, image_latents, clip_emb, frame_emb, attended)[0]

    def _whole(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        clip_emb: torch.Tensor,
        frame_emb: torch.Tensor,
        attended: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + clip_emb
        given = _LayerInputs(self._offsets(emb), self._constants(frame_emb, attended))
        at = self._start(sample, image_latents)
        skips = [at]
        for block in self.down:
            for number in range(len(block.resnets)):
                skips.append(at := self._step(block, number, at, given))
            for sampler in block.samplers:
                skips.append(at := fused.downsample(at, sampler, self.on))
        for number in range(len(self.middle.resnets)):
            at = self._step(self.middle, number, at, given)
        *blocks, last = self.up
        for block in blocks:
            for number in range(len(block.resnets)):
                at = self._step(block, number, fused.joined(at, skips.pop()), given)
            for sampler in block.samplers:
                at = fused.upsample(at, sampler, self.on)
        first = len(last.resnets) - shallow_layers(last)
        at = self._rise(at, range(first), skips, given)
        deep = at.x
        at = self._rise(at, range(first, len(last.resnets)), skips, given)
        return self._finish(at), deep.movedim(-1, 2)

    def _start(self, sample: torch.Tensor, image_latents: torch.Tensor) -> fused.Activation:
        pictures = image_latents[:, None].expand(-1, sample.shape[1], -1, -1, -1)
        x = torch.cat([sample, pictures], dim=2).permute(0, 1, 3, 4, 2).contiguous()
        return fused.added(fused.conv2d(x, self.conv_in), None, self.conv_in.bias, self.on)

    def _rise(
        self, at: fused.Activation, numbers: range, skips: list[fused.Activation], given: _LayerInputs
    ) -> fused.Activation:
        """Those layers of the last block; takes their skip connections from the list."""
        for number in numbers:
            at = self._step(self.up[-1], number, fused.joined(at, skips.pop()), given)
        return at

    def _finish(self, at: fused.Activation) -> torch.Tensor:
        x = fused.conv2d(fused.group_norm(at, self.norm_out), self.conv_out) + self.conv_out.bias
        return x.permute(0, 1, 4, 2, 3)

    def _offsets(self, emb: torch.Tensor) -> fused.Offsets:
        found = (*self.down, self.middle, *self.up)
        pairs = [resnet for block in found if block is not None for resnet in block.resnets]
        blocks = [part for pair in pairs for part in (pair.spatial_res_block, pair.temporal_res_block)]
        return dict(zip(blocks, fused.time_offsets(emb, blocks, self.on), strict=True))

    def _step(self, block: Any, number: int, at: fused.Activation, given: _LayerInputs) -> fused.Activation:
        """A resnet, and the transformer after it if there is one."""
        at = fused.spatio_temporal_resnet(at, block.resnets[number], given.offsets, self.on)
        for transformer in block.transformers[number : number + 1]:
            at = _transformer(at, transformer, *next(given.constants), self.on)
        return at


class FusedDeep(FusedDenoiser):
    """`DeepNetwork` by the functions of `fused.blocks`."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        clip_emb: torch.Tensor,
        frame_emb: torch.Tensor,
        attended: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DeepNetwork.forward`."""
        return self._whole(sample, timestep, image_latents, clip_emb, frame_emb, attended)


class FusedShallow(FusedDenoiser):
    """`ShallowNetwork` by the functions of `fused.blocks`."""

    def __init__(self, unet: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(unet, rewrites)
        keep_shallow(self)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        clip_emb: torch.Tensor,
        frame_emb: torch.Tensor,
        attended: torch.Tensor,
        deep: torch.Tensor,
    ) -> torch.Tensor:
        """As `ShallowNetwork.forward`."""
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + clip_emb
        offsets, last = self._offsets(emb), self.up[-1]
        below, above = self._shallow_constants(frame_emb, attended)
        skips = [self._start(sample, image_latents)]
        for number in range(shallow_layers(last) - 1):
            skips.append(self._step(self.down[0], number, skips[-1], _LayerInputs(offsets, below)))
        held = fused.measured(deep.movedim(2, -1).contiguous(), self.on)
        layers = range(len(last.resnets) - shallow_layers(last), len(last.resnets))
        return self._finish(self._rise(held, layers, skips, _LayerInputs(offsets, above)))


class FusedTemporalVaeDecoder(TemporalVaeDecoder):
    """`TemporalVaeDecoder` by the functions of `fused.blocks`, with the given rewrites."""

    def __init__(self, vae: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(vae)
        self.on = frozenset(rewrites)
        fused.prepare(self, self.on)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """As `TemporalVaeDecoder.forward`."""
        decoder, on = self.decoder, self.on
        x = latents.permute(0, 2, 3, 1).contiguous().unsqueeze(0)
        at = fused.added(fused.conv2d(x, decoder.conv_in), None, decoder.conv_in.bias, on)
        first, *rest = decoder.mid_block.resnets
        at = fused.spatio_temporal_resnet(at, first, {}, on)
        for attention, resnet in zip(decoder.mid_block.attentions, rest, strict=False):
            at = fused_vae.attend(at, attention, on)
            at = fused.spatio_temporal_resnet(at, resnet, {}, on)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                at = fused.spatio_temporal_resnet(at, resnet, {}, on)
            for sampler in block.upsamplers or ():
                at = fused.upsample(at, sampler, on)
        x = fused.conv2d(fused.group_norm(at, decoder.conv_norm_out), decoder.conv_out) + decoder.conv_out.bias
        x = fused.conv3d(x, decoder.time_conv_out) + decoder.time_conv_out.bias
        return x.squeeze(0).permute(0, 3, 1, 2)

"""Stable Video Diffusion's UNet in two networks, and its VAE's decoder, with every dimension dynamic.

The modules that hold the weights are diffusers'; the way through them is ours. Cross-attention sees one
token, the picture's: its softmax over that token is 1 whatever the query, so that all of it is a constant
for the clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn import Module, ModuleList

from ..deep_features import shallow_layers

_Constants = Iterator[tuple[torch.Tensor, torch.Tensor]]
"""Frame embedding and cross-attention result of each transformer."""


def to_volume(x: torch.Tensor, frames: int) -> torch.Tensor:
    """[batch * frames, channels, height, width] as [batch, channels, frames, height, width]."""
    return x.reshape(-1, frames, *x.shape[1:]).transpose(1, 2)


def to_frames(x: torch.Tensor) -> torch.Tensor:
    """[batch, channels, frames, height, width] as [batch * frames, channels, height, width]."""
    return x.transpose(1, 2).flatten(0, 1)


def _mixed(mixer: Any, spatial: torch.Tensor, temporal: torch.Tensor) -> torch.Tensor:
    """Both in the proportion that the layer has learned; a VAE's layers have learned the temporal share."""
    share = torch.sigmoid(mixer.mix_factor)
    one, other = (temporal, spatial) if mixer.switch_spatial_to_temporal_mix else (spatial, temporal)
    return share * one + (1 - share) * other


def resnet_over_frames(x: torch.Tensor, block: Any, emb: torch.Tensor | None, frames: int) -> torch.Tensor:
    """A SpatioTemporalResBlock over x [batch * frames, channels, height, width], with emb [batch, embedding]."""
    per_frame = None if emb is None else emb[:, None].expand(-1, frames, -1).flatten(0, 1)
    spatial = to_volume(block.spatial_res_block(x, per_frame), frames)
    temporal = block.temporal_res_block(spatial, None if emb is None else emb[:, None])
    return to_frames(_mixed(block.time_mixer, spatial, temporal))


def double(x: torch.Tensor, sampler: Any, size: torch.Size | None = None) -> torch.Tensor:
    """An Upsample2D to twice the sides or to `size`; its own forward asks how many frames there are."""
    scale = 2.0 if size is None else None
    return sampler.conv(torch.nn.functional.interpolate(x, size, scale, mode="nearest"))


def transformers(unet: Any) -> list[Any]:
    """The spatio-temporal transformers in the order in which the signal meets them."""
    blocks = (*unet.down_blocks, unet.mid_block, *unet.up_blocks)
    return [transformer for block in blocks for transformer in getattr(block, "attentions", ())]


def layers(transformer: Any) -> list[Any]:
    """A transformer's layers as they follow each other: spatial, temporal, spatial, ..."""
    pairs = zip(transformer.transformer_blocks, transformer.temporal_transformer_blocks, strict=True)
    return [layer for pair in pairs for layer in pair]


class Conditioner(Module):
    """The part of UNetSpatioTemporalConditionModel that sees neither noise nor timestep: once per clip."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        found = transformers(unet)
        attentions = [layer.attn2 for transformer in found for layer in layers(transformer)]
        self.add_time_proj = unet.add_time_proj
        self.add_embedding = unet.add_embedding
        self.frame_proj = ModuleList(transformer.time_proj for transformer in found)
        self.frame_embedding = ModuleList(transformer.time_pos_embed for transformer in found)
        self.value = ModuleList(attention.to_v for attention in attentions)
        self.out = ModuleList(attention.to_out[0] for attention in attentions)

    def forward(
        self, time_ids: torch.Tensor, frame_index: torch.Tensor, image_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From time_ids [batch, 3], frame_index [frames] and image_embeds [batch, width] to clip_emb
        [batch, embedding], and for all layers side by side frame_emb [1, frames, channels] and attended
        [batch, channels]."""
        dtype = image_embeds.dtype
        ids = self.add_time_proj(time_ids.flatten()).reshape(len(time_ids), -1)
        places = zip(self.frame_proj, self.frame_embedding, strict=True)
        frame_emb = [embedding(proj(frame_index).to(dtype)) for proj, embedding in places]
        attended = [out(value(image_embeds)) for value, out in zip(self.value, self.out, strict=True)]
        return self.add_embedding(ids.to(dtype)), torch.cat(frame_emb, dim=1)[None], torch.cat(attended, dim=1)


class _Layer(Module):
    """A transformer's layer with the cross-attention's result in place of the attention."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.norm1, self.attn1, self.norm3, self.ff = layer.norm1, layer.attn1, layer.norm3, layer.ff

    def forward(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """For x [batch, places, channels], in which attention goes along the second axis, attended alike."""
        x = x + self.attn1(self.norm1(x)) + attended
        return x + self.ff(self.norm3(x))


class _TemporalLayer(_Layer):
    """The same along time, after a feed-forward of its own."""

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self.norm_in, self.ff_in = layer.norm_in, layer.ff_in

    def forward(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        return super().forward(x + self.ff_in(self.norm_in(x)), attended)


class _Transformer(Module):
    """A TransformerSpatioTemporalModel whose cross-attention and frame embedding are given."""

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.norm, self.proj_in, self.proj_out = whole.norm, whole.proj_in, whole.proj_out
        self.spatial = ModuleList(map(_Layer, whole.transformer_blocks))
        self.temporal = ModuleList(map(_TemporalLayer, whole.temporal_transformer_blocks))
        self.mixer = whole.time_mixer
        self.channels: int = whole.proj_in.out_features
        self.attended_channels = 2 * len(self.spatial) * self.channels

    def forward(self, x: torch.Tensor, frame_emb: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """For x [batch * frames, channels, h, w], frame_emb [1, frames, channels], attended [batch, layers]."""
        (_, _, height, width), (batch, frames) = x.shape, (attended.shape[0], frame_emb.shape[1])
        h = self.proj_in(self.norm(x).permute(0, 2, 3, 1).flatten(1, 2))
        constants = iter(attended.split(self.channels, dim=1))
        for spatial, temporal in zip(self.spatial, self.temporal, strict=True):
            h = spatial(h, _for_each(next(constants), frames))
            over_time = h.reshape(batch, frames, -1, self.channels) + frame_emb[:, :, None]
            over_time = over_time.transpose(1, 2).flatten(0, 1)
            over_time = temporal(over_time, _for_each(next(constants), height * width))
            over_time = over_time.reshape(batch, -1, frames, self.channels).transpose(1, 2).flatten(0, 1)
            h = _mixed(self.mixer, h, over_time)
        h = self.proj_out(h).reshape(-1, height, width, self.channels).permute(0, 3, 1, 2)
        return x + h


def _for_each(constant: torch.Tensor, count: int) -> torch.Tensor:
    """[batch, channels] as [batch * count, 1, channels]."""
    return constant[:, None, None].expand(-1, count, -1, -1).flatten(0, 1)


class _Block(Module):
    """A block's layers, and the sampler that halves or doubles the sides after them."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.resnets: Any = block.resnets
        self.transformers: Any = ModuleList(map(_Transformer, getattr(block, "attentions", ())))
        self.samplers = ModuleList(getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or ())

    def layer(
        self, number: int, x: torch.Tensor, emb: torch.Tensor, constants: _Constants, frames: int
    ) -> torch.Tensor:
        """A resnet, and the transformer after it if there is one, with the next of the constants."""
        x = resnet_over_frames(x, self.resnets[number], emb, frames)
        for transformer in self.transformers[number : number + 1]:
            x = transformer(x, *next(constants))
        return x


class DenoiserNetwork(Module):
    """The part of UNetSpatioTemporalConditionModel that runs at every step."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding
        self.conv_in = unet.conv_in
        self.down: Any = ModuleList(map(_Block, unet.down_blocks))
        self.middle: Any = _Block(unet.mid_block)
        self.up: Any = ModuleList(map(_Block, unet.up_blocks))
        self.norm_out, self.act_out, self.conv_out = unet.conv_norm_out, unet.conv_act, unet.conv_out
        self.side_multiple = 2 ** (len(unet.up_blocks) - 1)
        found = [transformer for block in (*self.down, self.middle, *self.up) for transformer in block.transformers]
        self.frame_channels: list[int] = [transformer.channels for transformer in found]
        self.attended_channels: list[int] = [transformer.attended_channels for transformer in found]

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        clip_emb: torch.Tensor,
        frame_emb: torch.Tensor,
        attended: torch.Tensor,
    ) -> torch.Tensor:
        """Predicts for sample [batch, frames, 4, h, w] at timestep [batch] (float32) beside image_latents
        [batch, 4, h, w]; the rest is Conditioner's."""
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
        """The prediction, and the deep features [batch, frames, channels, h, w]: see `ShallowNetwork`."""
        frames, (height, width) = sample.shape[1], sample.shape[3:]
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + clip_emb
        given = {"emb": emb, "constants": self._constants(frame_emb, attended), "frames": frames}
        x = self._begin(sample, image_latents)
        skips = [x]
        for block in self.down:
            for number in range(len(block.resnets)):
                skips.append(x := block.layer(number, x, **given))
            for sampler in block.samplers:
                skips.append(x := sampler(x))
        for number in range(len(self.middle.resnets)):
            x = self.middle.layer(number, x, **given)
        odd = height % self.side_multiple != 0 or width % self.side_multiple != 0
        *blocks, last = self.up
        for block in blocks:
            for number in range(len(block.resnets)):
                x = block.layer(number, torch.cat([x, skips.pop()], dim=1), **given)
            for sampler in block.samplers:
                # Sides that do not halve evenly come up one short: the next skip connection gives the size.
                x = double(x, sampler, skips[-1].shape[2:] if odd else None)
        first = len(last.resnets) - shallow_layers(last)
        deep = self._ascend(x, range(first), skips, given)
        x = self._ascend(deep, range(first, len(last.resnets)), skips, given)
        return self._end(x, frames), deep.unflatten(0, (-1, frames))

    def _begin(self, sample: torch.Tensor, image_latents: torch.Tensor) -> torch.Tensor:
        pictures = image_latents[:, None].expand(-1, sample.shape[1], -1, -1, -1)
        return self.conv_in(torch.cat([sample, pictures], dim=2).flatten(0, 1))

    def _ascend(
        self, x: torch.Tensor, numbers: range, skips: list[torch.Tensor], given: dict[str, Any]
    ) -> torch.Tensor:
        """Those layers of the last block; takes their skip connections from the list."""
        for number in numbers:
            x = self.up[-1].layer(number, torch.cat([x, skips.pop()], dim=1), **given)
        return x

    def _end(self, x: torch.Tensor, frames: int) -> torch.Tensor:
        x = self.conv_out(self.act_out(self.norm_out(x)))
        return x.unflatten(0, (-1, frames))

    def _constants(self, frame_emb: torch.Tensor, attended: torch.Tensor) -> _Constants:
        """Each transformer's part of both, in their order."""
        frame_parts = frame_emb.split(self.frame_channels, dim=2)
        return zip(frame_parts, attended.split(self.attended_channels, dim=1), strict=True)

    def _shallow_constants(self, frame_emb: torch.Tensor, attended: torch.Tensor) -> tuple[_Constants, _Constants]:
        """Those of the first block's transformers, and of the last block's above the deep features."""
        parts, last = list(self._constants(frame_emb, attended)), self.up[-1]
        above = min(len(last.transformers), shallow_layers(last))
        return iter(parts), iter(parts[len(parts) - above :])


class DeepNetwork(DenoiserNetwork):
    """`DenoiserNetwork` that gives its deep features beside the prediction."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        clip_emb: torch.Tensor,
        frame_emb: torch.Tensor,
        attended: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DenoiserNetwork.forward`, and deep [batch, frames, channels, h, w]."""
        return self._whole(sample, timestep, image_latents, clip_emb, frame_emb, attended)


class ShallowNetwork(DenoiserNetwork):
    """The layers of `DenoiserNetwork` above its deep features: the same prediction where those are of the same call.

    Source: DeepCache (Ma et al. 2023, arXiv:2312.00858), its shallowest branch.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
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
        """As `DenoiserNetwork.forward`, given deep [batch, frames, channels, h, w]."""
        frames, last = sample.shape[1], self.up[-1]
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + clip_emb
        below, above = self._shallow_constants(frame_emb, attended)
        skips = [self._begin(sample, image_latents)]
        for number in range(shallow_layers(last) - 1):
            skips.append(self.down[0].layer(number, skips[-1], emb, below, frames))
        first = len(last.resnets) - shallow_layers(last)
        given = {"emb": emb, "constants": above, "frames": frames}
        return self._end(self._ascend(deep.flatten(0, 1), range(first, len(last.resnets)), skips, given), frames)


def keep_shallow(network: Any) -> None:
    """Lets go of the blocks below the shallow part: the first block and the last one stay."""
    network.down, network.middle, network.up = network.down[:1], None, network.up[-1:]


class TemporalVaeDecoder(Module):
    """The VAE's decoder, in which every frame of a chunk sees its neighbours."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.decoder = vae.decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """From unscaled latents [frames, 4, h, w] to image [frames, 3, h*8, w*8] in -1..1."""
        decoder, frames = self.decoder, latents.shape[0]
        first, *rest = decoder.mid_block.resnets
        x = resnet_over_frames(decoder.conv_in(latents), first, None, frames)
        for attention, resnet in zip(decoder.mid_block.attentions, rest, strict=False):
            x = resnet_over_frames(attention(x), resnet, None, frames)
        for block in decoder.up_blocks:
            for resnet in block.resnets:
                x = resnet_over_frames(x, resnet, None, frames)
            for sampler in block.upsamplers or ():
                x = double(x, sampler)
        x = decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(x)))
        return to_frames(decoder.time_conv_out(to_volume(x, frames)))

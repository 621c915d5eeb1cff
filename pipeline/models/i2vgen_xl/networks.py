"""I2VGen-XL's UNet in two networks: one runs once per clip, one at every step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

SHALLOW_LAYERS = 2
"""Layers of the last block that a deep cache runs at every call, with as many inputs from the way down."""


def _per_frame(x: torch.Tensor, frames: int) -> torch.Tensor:
    """[batch, ...] repeated to [batch * frames, ...]; expand and reshape export where repeat_interleave fails."""
    return x.unsqueeze(1).expand(x.shape[0], frames, *x.shape[1:]).reshape(x.shape[0] * frames, *x.shape[1:])


def _frames_to_batch(x: torch.Tensor) -> torch.Tensor:
    """[batch, channels, frames, height, width] as [batch * frames, channels, height, width]."""
    return x.permute(0, 2, 1, 3, 4).flatten(0, 1)


class Conditioner(torch.nn.Module):
    """The part of I2VGenXLUNet that sees neither noise nor timestep: once per clip."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.in_channels: int = unet.config.in_channels
        self.time_proj = unet.time_proj
        self.fps_embedding = unet.fps_embedding
        self.context_embedding = unet.context_embedding
        self.image_latents_proj_in = unet.image_latents_proj_in
        self.image_latents_temporal_encoder = unet.image_latents_temporal_encoder
        self.image_latents_context_embedding = unet.image_latents_context_embedding

    def forward(
        self, fps: torch.Tensor, image_latents: torch.Tensor, image_embeds: torch.Tensor, text_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """From fps [batch], image_latents [batch, 4, frames, h, w], image_embeds [batch, 1, width] and
        text_states [batch, 77, width] to image_cond [batch, 4, frames, h, w], fps_emb [batch, embedding]
        and context [batch, tokens, width]."""
        fps_emb = self.fps_embedding(self.time_proj(fps).to(text_states.dtype))
        first = self.image_latents_context_embedding(image_latents[:, :, 0])
        from_image = self.context_embedding(image_embeds).reshape(len(first), self.in_channels, -1)
        context = torch.cat([text_states, first.flatten(2).transpose(1, 2), from_image], dim=1)
        return self._over_time(image_latents), fps_emb, context

    def _over_time(self, image_latents: torch.Tensor) -> torch.Tensor:
        """The picture's latents and the frames' positions, mixed along time at each place."""
        batch, _, frames, height, width = image_latents.shape
        x = self.image_latents_proj_in(_frames_to_batch(image_latents))
        x = x.reshape(batch, frames, -1, height, width).permute(0, 3, 4, 1, 2)
        x = self.image_latents_temporal_encoder(x.flatten(0, 2))
        return x.reshape(batch, height, width, frames, -1).permute(0, 4, 3, 1, 2)


class DenoiserNetwork(torch.nn.Module):
    """The part of I2VGenXLUNet that runs at every step."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.time_proj = unet.time_proj
        self.time_embedding = unet.time_embedding
        self.conv_in = unet.conv_in
        self.transformer_in = unet.transformer_in
        self.down_blocks = unet.down_blocks
        self.mid_block = unet.mid_block
        self.up_blocks = unet.up_blocks
        self.conv_norm_out = unet.conv_norm_out
        self.conv_act = unet.conv_act
        self.conv_out = unet.conv_out
        self.side_multiple = 2 ** (len(unet.up_blocks) - 1)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Predicts for sample [batch, 4, frames, h, w] at timestep [batch] (float32); the rest is Conditioner's."""
        return self._whole(sample, timestep, image_cond, fps_emb, context)[0]

    def _whole(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prediction, and the deep features [batch, frames, channels, h, w]: see `ShallowNetwork`."""
        batch, _, frames, height, width = sample.shape
        given = self._given(timestep, fps_emb, context, frames, sample.dtype)
        x = self._begin(sample, image_cond, frames)
        skips: tuple[torch.Tensor, ...] = (x,)
        for block in self.down_blocks:
            x, produced = block(hidden_states=x, **_attended(block, given))
            skips += produced
        x = self.mid_block(x, **given)
        odd = height % self.side_multiple != 0 or width % self.side_multiple != 0
        *blocks, last = self.up_blocks
        for block in blocks:
            used, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            # Sides that do not halve evenly come up one short: the next skip connection gives the size.
            size = skips[-1].shape[2:] if odd else None
            x = block(hidden_states=x, res_hidden_states_tuple=used, upsample_size=size, **_attended(block, given))
        numbers, first = range(len(last.resnets)), len(last.resnets) - shallow_layers(last)
        deep = self._ascend(x, numbers[:first], skips, given)
        x = self._ascend(deep, numbers[first:], skips[: -first or None], given)
        return self._end(x, batch, frames), deep.unflatten(0, (batch, frames))

    def _given(
        self, timestep: torch.Tensor, fps_emb: torch.Tensor, context: torch.Tensor, frames: int, dtype: torch.dtype
    ) -> dict[str, Any]:
        """Inputs of every block that attends beside its activation."""
        emb = self.time_embedding(self.time_proj(timestep).to(dtype)) + fps_emb
        attended = _per_frame(context, frames)
        return {"temb": _per_frame(emb, frames), "num_frames": frames, "encoder_hidden_states": attended}

    def _begin(self, sample: torch.Tensor, image_cond: torch.Tensor, frames: int) -> torch.Tensor:
        x = self.conv_in(_frames_to_batch(torch.cat([sample, image_cond], dim=1)))
        return self.transformer_in(x, num_frames=frames, return_dict=False)[0]

    def _ascend(
        self, x: torch.Tensor, numbers: range, skips: tuple[torch.Tensor, ...], given: dict[str, Any]
    ) -> torch.Tensor:
        """Those layers of the last block, each with the last of the skip connections that are left."""
        for number in numbers:
            x = _layer(self.up_blocks[-1], number, torch.cat([x, skips[-1]], dim=1), given)
            skips = skips[:-1]
        return x

    def _end(self, x: torch.Tensor, batch: int, frames: int) -> torch.Tensor:
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.unflatten(0, (batch, frames)).transpose(1, 2)


class DeepNetwork(DenoiserNetwork):
    """`DenoiserNetwork` that gives its deep features beside the prediction."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `DenoiserNetwork.forward`, and deep [batch, frames, channels, h, w]."""
        return self._whole(sample, timestep, image_cond, fps_emb, context)


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
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
        deep: torch.Tensor,
    ) -> torch.Tensor:
        """As `DenoiserNetwork.forward`, given deep [batch, frames, channels, h, w]."""
        batch, frames = sample.shape[0], sample.shape[2]
        given = self._given(timestep, fps_emb, context, frames, sample.dtype)
        skips, count = [self._begin(sample, image_cond, frames)], shallow_layers(self.up_blocks[-1])
        for number in range(count - 1):
            skips.append(_layer(self.down_blocks[0], number, skips[-1], given))
        numbers = range(len(self.up_blocks[-1].resnets))
        x = self._ascend(deep.flatten(0, 1), numbers[-count:], tuple(skips), given)
        return self._end(x, batch, frames)


def attends(block: torch.nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def deep_channels(unet: Mapping[str, Any]) -> int:
    """Channels of the deep features by the UNet's configuration: the last block's own, or those that enter it."""
    layers = unet.get("layers_per_block", 2) + 1
    return unet["block_out_channels"][0 if layers > SHALLOW_LAYERS else min(1, len(unet["block_out_channels"]) - 1)]


def keep_shallow(network: Any) -> None:
    """Lets go of the blocks below the shallow part: the first block and the last one stay."""
    network.down_blocks, network.mid_block, network.up_blocks = network.down_blocks[:1], None, network.up_blocks[-1:]


def shallow_layers(block: Any) -> int:
    """Number of layers of the last block above the deep features."""
    return min(SHALLOW_LAYERS, len(block.resnets))


def _attended(block: torch.nn.Module, given: dict[str, Any]) -> dict[str, Any]:
    """The block's part of the inputs."""
    names = given if attends(block) else ("temb", "num_frames")
    return {name: given[name] for name in names}


def _layer(block: Any, number: int, x: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
    """One layer of a block, as the block's own forward has it."""
    x = block.temp_convs[number](block.resnets[number](x, given["temb"]), num_frames=given["num_frames"])
    if attends(block):
        context = given["encoder_hidden_states"]
        x = block.attentions[number](x, encoder_hidden_states=context, return_dict=False)[0]
        x = block.temp_attentions[number](x, num_frames=given["num_frames"], return_dict=False)[0]
    return x

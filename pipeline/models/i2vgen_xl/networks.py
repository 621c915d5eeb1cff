"""I2VGen-XL's UNet in two networks: one runs once per clip, one at every step."""

from __future__ import annotations

from typing import Any

import torch


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
        batch, _, frames, height, width = sample.shape
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + fps_emb
        given = {"temb": _per_frame(emb, frames), "num_frames": frames}
        attended = {**given, "encoder_hidden_states": _per_frame(context, frames)}

        x = self.conv_in(_frames_to_batch(torch.cat([sample, image_cond], dim=1)))
        x = self.transformer_in(x, num_frames=frames, return_dict=False)[0]
        skips: tuple[torch.Tensor, ...] = (x,)
        for block in self.down_blocks:
            x, produced = block(hidden_states=x, **(attended if attends(block) else given))
            skips += produced
        x = self.mid_block(x, **attended)
        odd = height % self.side_multiple != 0 or width % self.side_multiple != 0
        for block in self.up_blocks:
            used, skips = skips[-len(block.resnets) :], skips[: -len(block.resnets)]
            # Sides that do not halve evenly come up one short: the next skip connection gives the size.
            size = skips[-1].shape[2:] if odd and skips else None
            x = block(
                hidden_states=x,
                res_hidden_states_tuple=used,
                upsample_size=size,
                **(attended if attends(block) else given),
            )
        x = self.conv_out(self.conv_act(self.conv_norm_out(x)))
        return x.reshape(batch, frames, -1, height, width).permute(0, 2, 1, 3, 4)


def attends(block: torch.nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))

"""I2VGen-XL's UNet in two networks: one runs once per clip, one at every step."""

from __future__ import annotations

from typing import Any

import torch

from ..unet3d import UNet3D, frames_to_batch, per_frame


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
        x = self.image_latents_proj_in(frames_to_batch(image_latents))
        x = x.reshape(batch, frames, -1, height, width).permute(0, 3, 4, 1, 2)
        x = self.image_latents_temporal_encoder(x.flatten(0, 2))
        return x.reshape(batch, height, width, frames, -1).permute(0, 4, 3, 1, 2)


class DenoiserNetwork(UNet3D):
    """The part of I2VGenXLUNet that runs at every step."""

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> torch.Tensor:
        """Predicts for sample [batch, 4, frames, h, w] at timestep [batch] (float32); the rest is Conditioner's."""
        return _video(self.predict(*self._entering(sample, timestep, image_cond, fps_emb, context)), sample)

    def _entering(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, int]:
        """The arguments of `predict`."""
        frames = sample.shape[2]
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + fps_emb
        x = frames_to_batch(torch.cat([sample, image_cond], dim=1))
        return x, emb, per_frame(context, frames), frames


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
        entering = self._entering(sample, timestep, image_cond, fps_emb, context)
        prediction, deep = self.predict_deep(*entering)
        return _video(prediction, sample), deep.unflatten(0, (sample.shape[0], sample.shape[2]))


class ShallowNetwork(DenoiserNetwork):
    """The layers of `DenoiserNetwork` above its deep features: the same prediction where those are of the same call."""

    def __init__(self, unet: Any) -> None:
        super().__init__(unet)
        self.keep_shallow()

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
        entering = self._entering(sample, timestep, image_cond, fps_emb, context)
        return _video(self.predict_shallow(*entering, deep.flatten(0, 1)), sample)


def _video(x: torch.Tensor, sample: torch.Tensor) -> torch.Tensor:
    """[batch * frames, channels, h, w] as [batch, channels, frames, h, w]."""
    return x.unflatten(0, (sample.shape[0], sample.shape[2])).transpose(1, 2)

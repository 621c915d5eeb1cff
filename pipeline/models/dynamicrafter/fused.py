"""DynamiCrafter's denoiser by the functions of `fused.blocks`: the same result up to rounding."""

from __future__ import annotations

from typing import Any

import torch

from ...fused.cross_attention import attend_picture
from ..fused_unet3d import FusedUNet3D


class FusedDenoiser(FusedUNet3D):
    """`DenoiserNetwork` with the given rewrites: the same result up to rounding."""

    def __init__(self, stored: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(stored, rewrites)
        self.fps_embedding = stored.fps_embedding

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        text_states: torch.Tensor,
        image_tokens: torch.Tensor,
        fs: torch.Tensor,
    ) -> torch.Tensor:
        """As `DenoiserNetwork.forward`. With `shared_prefix` the first batch item stands for all but in text and
        picture tokens."""
        if "shared_prefix" in self.on:
            sample, timestep, image_latents, fs = (x[:1] for x in (sample, timestep, image_latents, fs))
        time = self.time_embedding(self.time_proj(timestep).to(sample.dtype))
        emb = time + self.fps_embedding(self.time_proj(fs).to(sample.dtype))
        x = torch.cat([sample, image_latents], dim=2).permute(0, 1, 3, 4, 2).contiguous()
        attend_context = attend_picture(text_states, image_tokens, self.cross_attentions, self.on)
        return self.predict_fused(x, emb, attend_context).permute(0, 1, 4, 2, 3)

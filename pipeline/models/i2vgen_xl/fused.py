"""I2VGen-XL's denoiser by the functions of `fused.blocks`: the same result up to rounding."""

from __future__ import annotations

import torch

from ...fused.cross_attention import attend_text
from ..fused_unet3d import REWRITES, FusedUNet3D

DENOISER_REWRITES = REWRITES


class FusedDenoiser(FusedUNet3D):
    """`DenoiserNetwork` with the given rewrites: the same result up to rounding.

    Takes sides that halve evenly at every level alone.
    """

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
        attend_context = attend_text(context, self.cross_attentions, self.on)
        return self.predict_fused(x, emb, attend_context).permute(0, 4, 1, 2, 3)

"""I2VGen-XL's denoiser by the functions of `fused.blocks`: the same result up to rounding."""

from __future__ import annotations

from typing import Any

import torch

from ...fused.blocks import AttendContext
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
        return self.predict_fused(*self._entering(sample, timestep, image_cond, fps_emb, context)).permute(
            0, 4, 1, 2, 3
        )

    def _entering(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_cond: torch.Tensor,
        fps_emb: torch.Tensor,
        context: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, AttendContext]:
        """The arguments of `predict_fused`."""
        if "shared_prefix" in self.on:
            sample, timestep, image_cond, fps_emb = (x[:1] for x in (sample, timestep, image_cond, fps_emb))
        emb = self.time_embedding(self.time_proj(timestep).to(sample.dtype)) + fps_emb
        x = torch.cat([sample, image_cond], dim=1).permute(0, 2, 3, 4, 1).contiguous()
        return x, emb, attend_text(context, self.cross_attentions, self.on)


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
        prediction, deep = self.predict_fused_deep(*self._entering(sample, timestep, image_cond, fps_emb, context))
        return prediction.permute(0, 4, 1, 2, 3), deep.movedim(-1, 2)


class FusedShallow(FusedDenoiser):
    """`ShallowNetwork` by the functions of `fused.blocks`."""

    def __init__(self, unet: Any, rewrites: tuple[str, ...]) -> None:
        super().__init__(unet, rewrites)
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
        """As `ShallowNetwork.forward`."""
        entering = self._entering(sample, timestep, image_cond, fps_emb, context)
        found = self.predict_fused_shallow(*entering, deep.movedim(2, -1).contiguous())
        return found.permute(0, 4, 1, 2, 3)

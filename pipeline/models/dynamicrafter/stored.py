"""DynamiCrafter's networks as their weights are stored: diffusers' modules under diffusers' names.

The UNet is `UNet3DConditionModel` with an embedding of the frame rate and, in each cross-attention, keys and values of
the picture's tokens; the projection of the picture is IP-Adapter's. Imported where one is loaded alone.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import AutoencoderKLTemporalDecoder, ConfigMixin, ModelMixin, UNet3DConditionModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import IPAdapterPlusImageProjection, TimestepEmbedding


class DynamiCrafterUNet(UNet3DConditionModel):
    """The denoiser's weights."""

    @register_to_config
    def __init__(
        self,
        in_channels: int = 8,
        out_channels: int = 4,
        block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
    ) -> None:
        attending = len(block_out_channels) - 1
        construct: Any = UNet3DConditionModel.__init__
        construct.__wrapped__(  # without the decorator, which would add its own settings to this configuration
            self,
            in_channels=in_channels,
            out_channels=out_channels,
            block_out_channels=tuple(block_out_channels),
            down_block_types=(*["CrossAttnDownBlock3D"] * attending, "DownBlock3D"),
            up_block_types=("UpBlock3D", *["CrossAttnUpBlock3D"] * attending),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
        )
        self.fps_embedding = TimestepEmbedding(block_out_channels[0], 4 * block_out_channels[0])
        for name, layer in self.named_modules():
            if name.endswith("transformer_blocks.0.attn2") and ".attentions." in name:
                for part in ("to_k_ip", "to_v_ip"):
                    layer.add_module(part, torch.nn.Linear(cross_attention_dim, layer.inner_dim, bias=False))


class DynamiCrafterImageProjection(ModelMixin, ConfigMixin):
    """The weights of the perceiver that makes tokens for every frame of what CLIP sees in the picture."""

    @register_to_config
    def __init__(
        self,
        embed_dims: int = 1280,
        output_dims: int = 1024,
        hidden_dims: int = 1024,
        depth: int = 4,
        dim_head: int = 64,
        heads: int = 12,
        num_queries: int = 256,
    ) -> None:
        super().__init__()
        made = IPAdapterPlusImageProjection(embed_dims, output_dims, hidden_dims, depth, dim_head, heads, num_queries)
        self.latents, self.proj_in, self.layers = made.latents, made.proj_in, made.layers
        self.proj_out, self.norm_out = made.proj_out, made.norm_out


GROUPS = 32
ATTENDING_LEVELS = (2, 3)
"""Levels of ToonCrafter's decoder that see the references by attention: those with the smallest planes."""
REFINING_HEADS, REFINING_WIDTH = 8, 64


class ReferenceAttention(torch.nn.Module):
    """Weights of an attention from every place of a frame to the references."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.heads, inner = REFINING_HEADS, REFINING_HEADS * REFINING_WIDTH
        self.norm = torch.nn.GroupNorm(groups, channels, eps=1e-6)
        self.to_q, self.to_k, self.to_v = (torch.nn.Linear(channels, inner, bias=False) for _ in range(3))
        self.to_out = torch.nn.ModuleList([torch.nn.Linear(inner, channels)])


class ReferenceSum(torch.nn.Module):
    """Weights of a layer whose result is added to a clip's first and last frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(channels, channels, 1)


class ToonCrafterVae(AutoencoderKLTemporalDecoder):
    """The weights of ToonCrafter's VAE: Stable Video Diffusion's, and layers that see two references."""

    @register_to_config
    def __init__(
        self,
        down_block_types: tuple[str, ...] = ("DownEncoderBlock2D",) * 4,
        block_out_channels: tuple[int, ...] = (128, 256, 512, 512),
        layers_per_block: int = 2,
        latent_channels: int = 4,
        sample_size: int = 768,
        scaling_factor: float = 0.18215,
    ) -> None:
        construct: Any = AutoencoderKLTemporalDecoder.__init__
        construct.__wrapped__(
            self,
            down_block_types=down_block_types,
            block_out_channels=block_out_channels,
            layers_per_block=layers_per_block,
            latent_channels=latent_channels,
            sample_size=sample_size,
            scaling_factor=scaling_factor,
        )
        layers = [
            ReferenceAttention(width, GROUPS) if level in ATTENDING_LEVELS else ReferenceSum(width)
            for level, width in enumerate(block_out_channels)
        ]
        self.decoder.attn_refinement = torch.nn.ModuleList([*layers, ReferenceSum(block_out_channels[0])])

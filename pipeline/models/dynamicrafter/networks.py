"""DynamiCrafter's networks as they are run: the encoders, the picture's projection, and the denoiser."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from ..parts import TextEncoder
from ..unet3d import UNet3D, attends, per_frame

TRIMMED_LAYERS = 23
"""Layers of OpenCLIP's text model in a folder of Stable Diffusion 2, which leaves out the last of 24."""


def text_encoder(model: Any) -> torch.nn.Module:
    """OpenCLIP's text model up to its last layer but one, whether or not its folder has the last."""
    return WholeTextEncoder(model) if model.config.num_hidden_layers == TRIMMED_LAYERS else TextEncoder(model)


class WholeTextEncoder(torch.nn.Module):
    """CLIP's text model with all layers of its folder."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """From input_ids [batch, 77] to text_states [batch, 77, width]."""
        return self.model(input_ids=input_ids).last_hidden_state


class VisionEncoder(torch.nn.Module):
    """CLIP's vision model up to the last layer's states, before its last norm and its projection."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """From normalised pixel_values [batch, 3, side, side] to image_states [batch, patches + 1, width]."""
        return self.model(pixel_values=pixel_values).last_hidden_state


class ImageProjection(torch.nn.Module):
    """Perceiver (Jaegle et al. 2021, arXiv:2103.03206): learnt queries, a few for each frame, look at the picture."""

    def __init__(self, stored: Any) -> None:
        super().__init__()
        self.latents, self.proj_in, self.layers = stored.latents, stored.proj_in, stored.layers
        self.proj_out, self.norm_out = stored.proj_out, stored.norm_out

    def forward(self, image_states: torch.Tensor) -> torch.Tensor:
        """From image_states [batch, patches + 1, width] to the tokens of all frames [batch, tokens, context width]."""
        seen = self.proj_in(image_states)
        x = self.latents.expand(seen.shape[0], -1, -1)
        for layer in self.layers:
            known, asked = layer.ln0(seen), layer.ln1(x)
            x = x + _attend(asked, torch.cat([known, asked], dim=1), layer.attn)
            norm, feed_forward = layer.ff
            x = x + feed_forward(norm(x))
        return self.norm_out(self.proj_out(x))


def _attend(x: torch.Tensor, context: torch.Tensor, attention: Any) -> torch.Tensor:
    """Attention of x [batch, tokens, width] to a context."""
    return attention.to_out[0](
        _heads_attend(attention, attention.to_q(x), attention.to_k(context), attention.to_v(context))
    )


def _heads_attend(attention: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention in heads, all [batch, tokens, heads * width]."""
    q, k, v = (x.unflatten(-1, (attention.heads, -1)).transpose(1, 2) for x in (q, k, v))
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


class PictureAttention:
    """Attention processor of a layer whose context ends with `tokens` of the picture, with keys of their own.

    Decoupled cross-attention (Ye et al. 2023, arXiv:2308.06721): text and picture have the same queries and are
    added up.
    """

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """For hidden_states [items, places, channels] and a context [items, text and picture tokens, width]."""
        text, picture = encoder_hidden_states[:, : -self.tokens], encoder_hidden_states[:, -self.tokens :]
        q = attn.to_q(hidden_states)
        attended = _heads_attend(attn, q, attn.to_k(text), attn.to_v(text))
        attended = attended + _heads_attend(attn, q, attn.to_k_ip(picture), attn.to_v_ip(picture))
        return attn.to_out[0](attended)


class DenoiserNetwork(UNet3D):
    """DynamiCrafter's UNet; `tokens` are those of the picture that a frame sees."""

    fp32_kinds = (torch.nn.GroupNorm, torch.nn.LayerNorm)
    """Modules that engines in fp16 compute in fp32, as the published code does; softmax is in fp32 in PyTorch's own
    attention and in TensorRT's."""

    def __init__(self, stored: Any, tokens: int) -> None:
        super().__init__(stored)
        self.fps_embedding = stored.fps_embedding
        for block in (*self.down_blocks, self.mid_block, *self.up_blocks):
            for model in block.attentions if attends(block) else ():
                for layer in model.transformer_blocks:
                    layer.attn2.processor = PictureAttention(tokens)

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        image_latents: torch.Tensor,
        text_states: torch.Tensor,
        image_tokens: torch.Tensor,
        fs: torch.Tensor,
    ) -> torch.Tensor:
        """Predicts for sample [batch, frames, 4, h, w] at timestep [batch] (float32) beside image_latents of the same
        shape, text_states [batch, 77, width], image_tokens [batch, frames, tokens, width] and fs [batch] (float32)."""
        frames = sample.shape[1]
        context = torch.cat([per_frame(text_states, frames), image_tokens.flatten(0, 1)], dim=1)
        x = torch.cat([sample, image_latents], dim=2).flatten(0, 1)
        x = self.predict(x, self.embed(timestep, fs, sample.dtype), context, frames)
        return x.unflatten(0, (-1, frames))

    def embed(self, timestep: torch.Tensor, fs: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Embedding [batch, width] of timestep and fs, both [batch]."""
        time = self.time_embedding(self.time_proj(timestep).to(dtype))
        return time + self.fps_embedding(self.time_proj(fs).to(dtype))

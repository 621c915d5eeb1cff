"""Wan's transformer and CLIP's vision model for it, with every dimension dynamic and nothing complex in the graph.

The modules that hold the weights are diffusers' and transformers'; the way through the transformer is ours.
All of it runs at every step, the text's and the picture's embedders too. Of a call's 1686 TFLOP (14 billion
parameters, 81 frames of 480x832) they and the keys and values that come of them are 2.2, while 40 layers' keys
and values would be 0.8 GB to keep for a clip, and a clip's conditioning another one for every expert and LoRA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import Module

from ....common.errors import CheckpointError

PATCH = 2
"""Latents that one token covers, in height and in width; in time it covers one."""
_Tables = tuple[torch.Tensor, torch.Tensor]


class VisionEncoder(Module):
    """CLIP's vision model without its last layer, whose input is Wan 2.1's encoding of the picture."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        body = getattr(model, "vision_model", model)  # transformers 5.6 made the two one
        body.encoder.layers = body.encoder.layers[: model.config.num_hidden_layers - 1]
        self.embeddings, self.norm, self.encoder = body.embeddings, body.pre_layrnorm, body.encoder

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """From normalised pixel_values [batch, 3, side, side] to image_states [batch, patches + 1, width]."""
        return self.encoder(inputs_embeds=self.norm(self.embeddings(pixel_values))).last_hidden_state


class _Rope(Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864) of a token in time, height and width, in real numbers."""

    def __init__(self, head_dim: int, length: int) -> None:
        super().__init__()
        plane = 2 * (head_dim // 6)
        for axis, width in enumerate((head_dim - 2 * plane, plane, plane)):
            angles = _angles(width, length)
            self.register_buffer(f"cos{axis}", angles.cos().float(), persistent=False)
            self.register_buffer(f"sin{axis}", angles.sin().float(), persistent=False)

    def forward(self, frames: int, height: int, width: int) -> _Tables:
        """Cosines and sines, float32 [frames * height * width, 1, head_dim / 2]."""
        return self._table("cos", frames, height, width), self._table("sin", frames, height, width)

    def _table(self, name: str, *sizes: int) -> torch.Tensor:
        views = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
        tables = [getattr(self, f"{name}{axis}")[:size] for axis, size in enumerate(sizes)]
        parts = [
            table.reshape(*view, table.shape[1]).expand(*sizes, -1) for table, view in zip(tables, views, strict=True)
        ]
        return torch.cat(parts, dim=-1).flatten(0, 2)[:, None]


def _angles(width: int, length: int) -> torch.Tensor:
    """Float64 [length, width / 2]: each position by each of the frequencies."""
    with torch.device("cpu"):
        frequencies = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        return torch.outer(torch.arange(length, dtype=torch.float64), frequencies)


def _rotated(x: torch.Tensor, rope: _Tables) -> torch.Tensor:
    """x [batch, tokens, heads, head_dim] with each pair of channels turned by its position's angle."""
    cos, sin = rope
    even, odd = x.unflatten(-1, (-1, 2)).float().unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


def _attended(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Attention over [batch, tokens, heads, head_dim], with the heads side by side after."""
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    return torch.nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def _self_attention(attn: Any, x: torch.Tensor, rope: _Tables) -> torch.Tensor:
    query, key, value = (
        tensor.unflatten(2, (attn.heads, -1))
        for tensor in (attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x))
    )
    return attn.to_out[0](_attended(_rotated(query, rope), _rotated(key, rope), value))


def _cross_attention(attn: Any, x: torch.Tensor, text: torch.Tensor, picture: torch.Tensor | None) -> torch.Tensor:
    def heads(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.unflatten(2, (attn.heads, -1))

    query = heads(attn.norm_q(attn.to_q(x)))
    found = _attended(query, heads(attn.norm_k(attn.to_k(text))), heads(attn.to_v(text)))
    if picture is not None:
        key, value = attn.norm_added_k(attn.add_k_proj(picture)), attn.add_v_proj(picture)
        found = found + _attended(query, heads(key), heads(value))
    return attn.to_out[0](found)


def _block(
    block: Any, x: torch.Tensor, emb: torch.Tensor, text: torch.Tensor, picture: torch.Tensor | None, rope: _Tables
) -> torch.Tensor:
    """A WanTransformerBlock over x [batch, tokens, channels], with emb [batch, groups, 6, channels].

    The tokens are that many groups of equal size, one after another, each with a timestep of its own.
    """
    groups = emb.shape[1]
    shift, scale, gate, ff_shift, ff_scale, ff_gate = (block.scale_shift_table + emb.float()).chunk(6, dim=2)

    def modulated(norm: Any, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return (norm(x.float()).unflatten(1, (groups, -1)) * (1 + scale) + shift).flatten(1, 2).to(x.dtype)

    def gated(update: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        return (x.float() + (update.unflatten(1, (groups, -1)) * gate).flatten(1, 2)).to(x.dtype)

    x = gated(_self_attention(block.attn1, modulated(block.norm1, shift, scale), rope), gate)
    x = x + _cross_attention(block.attn2, block.norm2(x.float()).to(x.dtype), text, picture)
    return gated(block.ffn(modulated(block.norm3, ff_shift, ff_scale)), ff_gate)


class DenoiserNetwork(Module):
    """WanTransformer3DModel for a picture that comes as latents beside the noise, or as the noise's first frame."""

    def __init__(self, transformer: Any) -> None:
        super().__init__()
        config = transformer.config
        if tuple(config.patch_size) != (1, PATCH, PATCH):
            raise CheckpointError(f"Expected Wan's patch size [1, {PATCH}, {PATCH}], found {list(config.patch_size)}.")
        self.rope = _Rope(config.attention_head_dim, config.rope_max_seq_len)
        self.patch_embedding = transformer.patch_embedding
        self.embedder = transformer.condition_embedder
        self.blocks = transformer.blocks
        self.norm_out, self.proj_out = transformer.norm_out, transformer.proj_out
        self.scale_shift_table = transformer.scale_shift_table

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        text_states: torch.Tensor,
        condition: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicts for sample [batch, channels, frames, h, w] at timestep [batch], or [batch, frames] (float32).

        text_states [batch, 512, width]; condition [batch, 20, frames, h, w] and image_states
        [batch, tokens, width] where the checkpoint takes them.
        """
        batch, _, frames, height, width = sample.shape
        places = (frames, height // PATCH, width // PATCH)
        x = sample if condition is None else torch.cat([sample, condition], dim=1)
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)
        temb, emb = self._time(timestep.reshape(batch, -1), sample.dtype)
        text = self.embedder.text_embedder(text_states)
        picture = None if image_states is None else self.embedder.image_embedder(image_states)
        rope = self.rope(*places)
        for block in self.blocks:
            x = _block(block, x, emb, text, picture, rope)
        shift, scale = (self.scale_shift_table + temb[:, :, None]).chunk(2, dim=2)
        groups = self.norm_out(x.float()).unflatten(1, (temb.shape[1], -1))
        x = self.proj_out((groups * (1 + scale) + shift).flatten(1, 2).to(sample.dtype))
        x = x.reshape(batch, *places, PATCH, PATCH, -1).permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(batch, -1, frames, height, width)

    def _time(self, timestep: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Of timestep [batch, groups] the embedding [batch, groups, channels] and each layer's six of them."""
        embedder = self.embedder
        waves = embedder.timesteps_proj(timestep.flatten()).reshape(*timestep.shape, -1)
        temb = embedder.time_embedder(waves.to(embedder.time_embedder.linear_1.weight.dtype)).to(dtype)
        return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(2, (6, -1))

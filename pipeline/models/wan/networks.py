"""Wan's transformer and CLIP's vision model for it, with every dimension dynamic and nothing complex in the graph.

The modules that hold the weights are diffusers' and transformers'; the way through the transformer is ours.
All of it runs at every step, the text's and the picture's embedders too. Of a call's 1686 TFLOP (14 billion
parameters, 81 frames of 480x832) they and the keys and values that come of them are 2.2, while 40 layers' keys
and values would be 0.8 GB to keep for a clip, and a clip's conditioning another one for every expert and LoRA.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.nn import Module

from ....common.errors import CheckpointError
from ...fused.fp8_product import RowScaledLinear, with_fp8_products
from ...fused.kernels import flash_attention, gelu_product, residual
from ...fused.kernels.flash_attention import attention, fp8_attention
from ...fused.kernels.layer_norm import Modulation, Rows, add_and_norm, norm_rows
from ...fused.kernels.rope import rms_rope
from ...fused.kernels.rounding import rounded_gelu, rounded_rows

NORM_ROPE, NORMS, FLASH, PRODUCTS = "norm_rope", "fused_norms", "flash_attention", "fused_products"
REWRITES = (NORM_ROPE, NORMS, FLASH, PRODUCTS)
"""Rewrites of the blocks: norm and rotation of queries and keys in one kernel; each layer norm with what stands around
it in one; FlashAttention-3 where it serves; GELU and the addition after cross-attention as parts of the products before
them."""
FP8_PRODUCTS, FP8_ATTENTION = "fp8_products", "fp8_attention"
ROUNDINGS = (FP8_PRODUCTS, FP8_ATTENTION)
"""Rewrites that round: the blocks' linear layers multiply in fp8, and so does their self-attention."""
OPERATORS = {
    FLASH: (flash_attention.register,),
    FP8_ATTENTION: (flash_attention.register_fp8,),
    PRODUCTS: (residual.register, gelu_product.register),
}
"""Registration of the operators that engines with a rewrite call."""
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
        """Cosines and sines, float32 [frames * height * width, head_dim / 2]."""
        return self._table("cos", frames, height, width), self._table("sin", frames, height, width)

    def _table(self, name: str, *sizes: int) -> torch.Tensor:
        views = ((-1, 1, 1), (1, -1, 1), (1, 1, -1))
        tables = [getattr(self, f"{name}{axis}")[:size] for axis, size in enumerate(sizes)]
        parts = [
            table.reshape(*view, table.shape[1]).expand(*sizes, -1) for table, view in zip(tables, views, strict=True)
        ]
        return torch.cat(parts, dim=-1).flatten(0, 2)


def _angles(width: int, length: int) -> torch.Tensor:
    """Float64 [length, width / 2]: each position by each of the frequencies."""
    with torch.device("cpu"):
        frequencies = 10000.0 ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
        return torch.outer(torch.arange(length, dtype=torch.float64), frequencies)


class Block(Module):
    """A WanTransformerBlock with some of `REWRITES` and `ROUNDINGS`, whose layers keep their names."""

    def __init__(self, block: Any, rewrites: tuple[str, ...] = ()) -> None:
        super().__init__()
        rounded: Any = with_fp8_products(block) if FP8_PRODUCTS in rewrites else block
        self.norm1, self.attn1, self.norm2, self.attn2 = block.norm1, rounded.attn1, block.norm2, rounded.attn2
        self.norm3, self.ffn, self.scale_shift_table = block.norm3, rounded.ffn, block.scale_shift_table
        self._rewrites = rewrites

    def forward(
        self,
        x: torch.Tensor,
        emb: torch.Tensor,
        text: torch.Tensor,
        picture: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
    ) -> torch.Tensor:
        """From x [batch, groups, tokens, channels] to the same; each group of tokens has a timestep of its own.

        emb [batch, groups, 6, channels], text [batch, 512, channels], picture [batch, patches, channels],
        cos and sin float32 [groups, tokens, head_dim / 2].
        """
        shift, scale, gate, ff_shift, ff_scale, ff_gate = (self.scale_shift_table + emb.float()).unbind(2)
        before = Modulation(1 + scale, shift, self.norm1.eps)
        found = self._self_attention(self._normed(x, before, self.attn1.to_q), cos, sin)
        x, tokens = self._between(x, found, gate)
        x = self._added(x, self._cross_attention(tokens, text, picture))
        after = Modulation(1 + ff_scale, ff_shift, self.norm3.eps)
        found = self._feed_forward(self._normed(x, after, self.ffn.net[0].proj))
        return (x.float() + found.reshape(x.shape) * ff_gate[:, :, None]).to(x.dtype)

    def _normed(self, x: torch.Tensor, modulation: Modulation, reader: Module) -> Rows:
        """The tokens [batch, groups * tokens, channels] that a layer reads."""
        return norm_rows(x, modulation, rounds=isinstance(reader, RowScaledLinear), fused=NORMS in self._rewrites)

    def _between(self, x: torch.Tensor, found: torch.Tensor, gate: torch.Tensor) -> tuple[torch.Tensor, Rows]:
        """x after self-attention, and what cross-attention reads of it.

        Where its product is added in place, x has that layer's bias already.
        """
        attn, norm = self.attn2, self.norm2
        offset = attn.to_out[0].bias if self._fuses_products else None
        if not isinstance(norm, torch.nn.LayerNorm):  # a Wan without that norm
            x = (x.float() + found.reshape(x.shape) * gate[:, :, None]).to(x.dtype)
            return x if offset is None else x + offset, x.flatten(1, 2)
        modulation = Modulation(norm.weight.float(), norm.bias.float(), norm.eps)
        rounds, fused = isinstance(attn.to_q, RowScaledLinear), NORMS in self._rewrites
        return add_and_norm(x, found, gate, offset, modulation, rounds=rounds, fused=fused)

    def _self_attention(self, tokens: Rows, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        attn, rope = self.attn1, (cos.flatten(0, 1), sin.flatten(0, 1))
        query, key = (
            rms_rope(projected, norm.weight, norm.eps, *rope, fused=NORM_ROPE in self._rewrites)
            for projected, norm in ((attn.to_q(tokens), attn.norm_q), (attn.to_k(tokens), attn.norm_k))
        )
        value = _heads(attn, attn.to_v(tokens))
        if FP8_ATTENTION in self._rewrites:
            found = fp8_attention(query, key, value, _limit(attn, attn.norm_q), _limit(attn, attn.norm_k))
        else:
            found = attention(query, key, value, flash=FLASH in self._rewrites)
        return attn.to_out[0](found)

    def _cross_attention(self, tokens: Rows, text: torch.Tensor, picture: torch.Tensor | None) -> torch.Tensor:
        """What the layer after it reads, [batch, groups * tokens, channels]."""
        attn = self.attn2
        query, words = _heads(attn, attn.norm_q(attn.to_q(tokens))), _read_often(text, attn.to_k)
        key, value = attn.norm_k(attn.to_k(words)), attn.to_v(words)
        found = attention(query, _heads(attn, key), _heads(attn, value), flash=FLASH in self._rewrites)
        if picture is not None:
            patches = _read_often(picture, attn.add_k_proj)
            key, value = attn.norm_added_k(attn.add_k_proj(patches)), attn.add_v_proj(patches)
            found = found + attention(query, _heads(attn, key), _heads(attn, value), flash=FLASH in self._rewrites)
        return found

    @property
    def _fuses_products(self) -> bool:
        return PRODUCTS in self._rewrites and FP8_PRODUCTS not in self._rewrites

    def _added(self, x: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
        """x and the last product of cross-attention; x is not to be read again."""
        linear, found = self.attn2.to_out[0], found.reshape(x.shape)
        return residual.add_product(x, found, linear.weight) if self._fuses_products else x + linear(found)

    def _feed_forward(self, x: Any) -> torch.Tensor:
        first, last = self.ffn.net[0].proj, self.ffn.net[2]
        if isinstance(last, RowScaledLinear):
            return last(rounded_gelu(first(x)))
        if not self._fuses_products:
            return self.ffn(x)
        return last(gelu_product.gelu_product(x, first.weight, first.bias))


def _read_often(x: torch.Tensor, reader: Module) -> Rows:
    """What several layers like the reader read, rounded once for all."""
    return rounded_rows(x) if isinstance(reader, RowScaledLinear) else x


def _limit(attn: Any, norm: Any) -> torch.Tensor:
    """The largest value that each head can have after a norm over all heads and a rotation, fp32 [heads]."""
    return norm.weight.float().abs().unflatten(0, (attn.heads, -1)).amax(1) * norm.weight.shape[0] ** 0.5


def _heads(attn: Any, tensor: torch.Tensor) -> torch.Tensor:
    """From [batch, tokens, channels] to [batch, tokens, heads, head_dim]."""
    return tensor.unflatten(2, (attn.heads, -1))


class DenoiserNetwork(Module):
    """WanTransformer3DModel for a picture that comes as latents beside the noise, or as the noise's first frame."""

    repeated: ClassVar[str] = "blocks"
    """Path of the list of equal modules that an engine can be made of one of."""

    def __init__(self, transformer: Any, rewrites: tuple[str, ...] = ()) -> None:
        super().__init__()
        config = transformer.config
        if tuple(config.patch_size) != (1, PATCH, PATCH):
            raise CheckpointError(f"Expected Wan's patch size [1, {PATCH}, {PATCH}], found {list(config.patch_size)}.")
        self.rope = _Rope(config.attention_head_dim, config.rope_max_seq_len)
        self.patch_embedding = transformer.patch_embedding
        self.embedder = transformer.condition_embedder
        for register in (register for name in rewrites for register in OPERATORS.get(name, ())):
            register()  # an engine that was built elsewhere calls it
        self.blocks = torch.nn.ModuleList(Block(block, rewrites) for block in transformer.blocks)
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
        groups = (temb.shape[1], -1)
        cos, sin = (table.unflatten(0, groups) for table in self.rope(*places))
        x = x.unflatten(1, groups)
        for block in self.blocks:
            x = block(x, emb, text, picture, cos, sin)
        shift, scale = (self.scale_shift_table + temb[:, :, None]).chunk(2, dim=2)
        x = self.proj_out((self.norm_out(x.float()) * (1 + scale) + shift).to(sample.dtype))
        x = x.reshape(batch, *places, PATCH, PATCH, -1).permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(batch, -1, frames, height, width)

    def _time(self, timestep: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Of timestep [batch, groups] the embedding [batch, groups, channels] and each layer's six of them."""
        embedder = self.embedder
        waves = embedder.timesteps_proj(timestep.flatten()).reshape(*timestep.shape, -1)
        temb = embedder.time_embedder(waves.to(embedder.time_embedder.linear_1.weight.dtype)).to(dtype)
        return temb, embedder.time_proj(embedder.act_fn(temb)).unflatten(2, (6, -1))

"""Wan's text encoder, that of UMT5 (Chung et al. 2023, arXiv:2304.09151), over as many tokens as a prompt has.

The published pipeline pads a prompt to 512 tokens, to which no token attends, and puts zeros in place of
their states: the prompt's own tokens give the same, in the time of so few tokens.

The modules that hold the weights are transformers'; the way through them is ours. The sum over the layers
exceeds the range of half precision, and so does the gated product within a layer: the sum is kept in float32,
and for fp16 each token's product is divided by its largest value before it is rounded.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn import Module, functional

from ....common.spec import Scope, TensorSpec
from ..checkpoints.diffusers_folder import BlockList
from ..diffusers_family import Network

if TYPE_CHECKING:
    from ..base import Run

BLOCKS = BlockList("encoder.block", "num_layers")
"""The encoder's equal blocks, as its checkpoint names them."""
TOKENS = 512
"""Places for a prompt's tokens in the transformer's input; zeros after the last."""
_QUOTES = str.maketrans({**dict.fromkeys("\u02bc\u2018\u2019\u201a\u201b", "'"), **dict.fromkeys("“”„‟", '"')})
_SHAPED = re.compile("[\ufb00-\ufb06\uff01-\uffef]+")
"""Ligatures, and letters as wide or as narrow as another script's."""


def clean(text: str) -> str:
    """The prompt as the published pipeline cleans it, by ftfy and after it, where no character has gone wrong before.

    HTML's entities are read, quotation marks made straight, letters plain, spaces single.
    """
    plain = html.unescape(html.unescape(text)).translate(_QUOTES)
    plain = _SHAPED.sub(lambda found: unicodedata.normalize("NFKC", found[0]), plain)
    return " ".join(unicodedata.normalize("NFC", plain).split())


def text_network(config: Mapping[str, Any]) -> Network:
    """The text encoder's row in a table of networks."""
    ids = TensorSpec("input_ids", (1, "tokens"), "int64", Scope.CLIP, span=(0, config["vocab_size"]))
    states = TensorSpec("text_states", (1, "tokens", config["d_model"]), scope=Scope.CLIP)
    return Network("text_encoder", TextEncoder, (ids,), (states,), ("tokens",))


def encode_texts(run: Run, ids: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """States [texts, TOKENS, width] of ids, int64 [texts, at most TOKENS], whose first `counts` are the texts' own."""
    found = []
    for row, count in zip(ids, counts, strict=True):
        states = run("text_encoder", {"input_ids": row[None, :count]})["text_states"]
        found.append(functional.pad(states, (0, 0, 0, TOKENS - states.shape[1])))
    return torch.cat(found)


class Block(Module):
    """A UMT5Block over one text without padding; its layers keep their names."""

    def __init__(self, block: Any, heads: int) -> None:
        super().__init__()
        self.layer, self._heads = block.layer, heads
        dense = block.layer[-1].DenseReluDense
        dense.wo.to(dense.wi_0.weight.dtype)  # which transformers keeps in full precision against overflow

    def forward(self, x: torch.Tensor, buckets: torch.Tensor) -> torch.Tensor:
        """From x float32 [1, tokens, width] to the same; buckets int64 [tokens, tokens] number each pair's bias."""
        attention, feed_forward = self.layer[0], self.layer[-1]
        x = x + self._attend(_normed(x, attention.layer_norm), attention.SelfAttention, buckets).float()
        return x + _gated(_normed(x, feed_forward.layer_norm), feed_forward.DenseReluDense)

    def _attend(self, x: torch.Tensor, attention: Any, buckets: torch.Tensor) -> torch.Tensor:
        """Self-attention, unscaled, with each head's bias for the distance of two tokens."""
        bias = attention.relative_attention_bias(buckets).permute(2, 0, 1)[None]
        queries, keys, values = (
            proj(x).unflatten(2, (self._heads, -1)).transpose(1, 2) for proj in (attention.q, attention.k, attention.v)
        )
        attended = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=bias, scale=1.0)
        return attention.o(attended.transpose(1, 2).flatten(2))


class TextEncoder(Module):
    """UMT5EncoderModel over one text without padding."""

    repeated: ClassVar[str] = "blocks"
    """Path of the list of equal modules that an engine can be made of one of."""
    buckets: torch.Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        stack, config = model.encoder, model.config
        self.embedding, self.norm = stack.embed_tokens, stack.final_layer_norm
        self.blocks = torch.nn.ModuleList(Block(block, config.num_heads) for block in stack.block)
        buckets = _buckets(config.relative_attention_num_buckets, config.relative_attention_max_distance)
        self.register_buffer("buckets", buckets, persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        """From input_ids [1, tokens], at most TOKENS, to text_states [1, tokens, width]."""
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        buckets = self.buckets[places[None] - places[:, None] + TOKENS - 1]
        x = self.embedding(input_ids).float()
        for block in self.blocks:
            x = block(x, buckets)
        return _normed(x, self.norm)


def _normed(x: torch.Tensor, norm: Any) -> torch.Tensor:
    """UMT5LayerNorm of the sum, in the weights' precision."""
    scale = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + norm.variance_epsilon)
    return (x * scale).to(norm.weight.dtype) * norm.weight


def _gated(x: torch.Tensor, dense: Any) -> torch.Tensor:
    """UMT5DenseGatedActDense, in float32 at its end."""
    product = dense.act(dense.wi_0(x).float()) * dense.wi_1(x).float()
    if x.dtype != torch.float16:
        return dense.wo(product.to(x.dtype)).float()
    largest = product.abs().amax(dim=-1, keepdim=True).clamp(min=1.0)
    return dense.wo((product / largest).to(x.dtype)).float() * largest


def _buckets(count: int, max_distance: int) -> torch.Tensor:
    """For each distance from 1 - TOKENS to TOKENS - 1, key behind query to key before it, the number of its bias.

    Half of the numbers for each direction; of those one for each of the nearest, then ever wider ones (Raffel et
    al. 2019, arXiv:1910.10683).
    """
    distance = torch.arange(1 - TOKENS, TOKENS)
    half, exact, far = count // 2, count // 4, distance.abs()
    wide = torch.log(far.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    number = torch.where(far < exact, far, (exact + wide.long()).clamp(max=half - 1))
    return number + half * (distance > 0)

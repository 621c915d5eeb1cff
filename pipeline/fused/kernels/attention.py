"""PyTorch's attention over more items than its kernels count.

On CUDA the fused kernels give an axis of the grid to the items, which ends at 65535: with one more they fail with
"invalid argument". Temporal attention has an item for each place of a frame.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

MOST_ITEMS = 1 << 15


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Softmax attention, all [items, heads, tokens, width], of as many items as there are."""
    if not exceeds(q):
        return functional.scaled_dot_product_attention(q, k, v)
    parts = zip(*(x.split(MOST_ITEMS) for x in (q, k, v)), strict=True)
    return torch.cat([functional.scaled_dot_product_attention(*part) for part in parts])


def exceeds(x: torch.Tensor) -> bool:
    """Whether a CUDA tensor has too many items for one call; one that is traced with any number of them does not."""
    return x.is_cuda and isinstance(x.shape[0], int) and x.shape[0] > MOST_ITEMS


class LimitedAttention:
    """Attention processor of a diffusers layer, with the items cut into parts that the kernels can count."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        temb: torch.Tensor | None = None,
        **rest: Any,
    ) -> torch.Tensor:
        """As the inner processor, for hidden_states [items, tokens, channels] and the context of each item."""
        if attention_mask is not None or temb is not None or not exceeds(hidden_states):
            return self.inner(attn, hidden_states, encoder_hidden_states, attention_mask, temb, **rest)
        parts = hidden_states.split(MOST_ITEMS)
        others = [None] * len(parts) if encoder_hidden_states is None else encoder_hidden_states.split(MOST_ITEMS)
        return torch.cat([self.inner(attn, part, other, **rest) for part, other in zip(parts, others, strict=True)])


def limit_attention(network: torch.nn.Module) -> None:
    """Has every attention of diffusers in the network take any number of items."""
    for layer in network.modules():
        processor = getattr(layer, "processor", None)
        if processor is not None and not isinstance(processor, LimitedAttention):
            setattr(layer, "processor", LimitedAttention(processor))  # noqa: B010 - no tensor, no module

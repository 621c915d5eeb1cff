"""Cross-attention of video blocks to what a clip is conditioned on, with the work that frames and layers share once.

As in `blocks`, `on` names the rewrites that are switched on, and activations are [batch, frames, height, width,
channels]. An activation may have one batch item where the context has several: the branches share it so far.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from .blocks import On, attend, heads

KeysValues = tuple[torch.Tensor, torch.Tensor]
Folded = dict[Any, KeysValues]


@dataclass(frozen=True)
class TextAttention:
    """Attention of every place of every frame to a text [branches, tokens, width], one for all frames."""

    text: torch.Tensor
    folded: Folded
    """Keys and values of the text by attention; empty where they are computed for each frame."""

    def __call__(self, x: torch.Tensor, attention: Any) -> torch.Tensor:
        """Result up to the attention's last layer."""
        return self.attend(_queries(x, attention, self.text.shape[0]), attention).reshape(_of_branches(x, self.text))

    def attend(self, q: torch.Tensor, attention: Any) -> torch.Tensor:
        """From queries [branches, frames, places, heads, head width] to [branches * frames * places, channels]."""
        if attention in self.folded:
            k, v = (heads(part, attention) for part in self.folded[attention])
            return attend(q.flatten(1, 2), k, v).flatten(0, 1)
        frames = q.shape[1]
        text = self.text.unsqueeze(1).expand(-1, frames, -1, -1).reshape(-1, *self.text.shape[1:])
        k, v = (heads(layer(text), attention) for layer in (attention.to_k, attention.to_v))
        return attend(q.flatten(0, 1), k, v).flatten(0, 1)


@dataclass(frozen=True)
class PictureAttention:
    """The same, plus the attention of each frame to picture tokens of its own, [branches, frames, tokens, width].

    Decoupled cross-attention (Ye et al. 2023, arXiv:2308.06721): both have the same queries, and are added up.
    """

    text: TextAttention
    tokens: torch.Tensor
    folded: Folded
    """Keys and values of the tokens by attention; empty where each layer computes its own."""

    def __call__(self, x: torch.Tensor, attention: Any) -> torch.Tensor:
        """Result up to the attention's last layer."""
        q = _queries(x, attention, self.tokens.shape[0])
        layers = attention.to_k_ip, attention.to_v_ip
        found = self.folded.get(attention) or tuple(layer(self.tokens) for layer in layers)
        k, v = (heads(part.flatten(0, 1), attention) for part in found)
        attended = self.text.attend(q, attention) + attend(q.flatten(0, 1), k, v).flatten(0, 1)
        return attended.reshape(_of_branches(x, self.tokens))


def attend_text(text: torch.Tensor, attentions: list[Any], on: On) -> TextAttention:
    """Cross-attention of these layers to a text [branches, tokens, width]."""
    pairs = [(attention.to_k, attention.to_v) for attention in attentions]
    return TextAttention(text, _folded(text, attentions, pairs, on))


def attend_picture(text: torch.Tensor, tokens: torch.Tensor, attentions: list[Any], on: On) -> PictureAttention:
    """Cross-attention of these layers to a text and to each frame's picture tokens [branches, frames, n, width]."""
    pairs = [(attention.to_k_ip, attention.to_v_ip) for attention in attentions]
    return PictureAttention(attend_text(text, attentions, on), tokens, _folded(tokens, attentions, pairs, on))


def _folded(context: torch.Tensor, attentions: list[Any], pairs: list[tuple[Any, Any]], on: On) -> Folded:
    """Keys and values of all layers in one product, with `fold_frames`."""
    if "fold_frames" not in on:
        return {}
    layers = [layer for pair in pairs for layer in pair]
    together = functional.linear(context, torch.cat([layer.weight for layer in layers]))
    parts = together.split([len(layer.weight) for layer in layers], -1)
    return dict(zip(attentions, zip(parts[::2], parts[1::2], strict=True), strict=True))


def _queries(x: torch.Tensor, attention: Any, branches: int) -> torch.Tensor:
    """[branches, frames, places, heads, head width]."""
    q = heads(attention.to_q(x.flatten(1, 3)), attention).unflatten(1, (x.shape[1], -1))
    return q.expand(branches, *q.shape[1:])


def _of_branches(x: torch.Tensor, context: torch.Tensor) -> tuple[int, ...]:
    return (context.shape[0], *x.shape[1:4], -1)

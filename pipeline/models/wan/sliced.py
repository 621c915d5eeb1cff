"""Wan's transformer over a part of a clip's tokens, beside other processes that have the other parts.

Each token is on its own everywhere but in self-attention: there the keys and values of all parts are gathered, so that
each part's queries see the whole clip. For two processes that sends as many bytes as rings of keys and values (Liu et
al. 2023, arXiv:2310.01889) or exchanges of heads (Jacobs et al. 2023, arXiv:2309.14509) do.

A network here is called as the whole one is, with all latents, and gives the whole prediction. In a process without
others its part is everything. Code that is compiled for one part serves any number of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import Module

from ....common.errors import InputError
from ...fused.kernels.flash_attention import attention, fp8_attention
from ...fused.kernels.layer_norm import Rows
from ...fused.kernels.operators import library_operator
from ...fused.kernels.rope import rms_rope
from .networks import FLASH, FP8_ATTENTION, NORM_ROPE, PATCH, Block, DenoiserNetwork, _heads, _limit

SLICED = "sliced_tokens"
"""The name of this rewrite in the keys of engines."""
GATHER = "gather_keys_and_values"

Gather = Callable[[torch.Tensor], torch.Tensor]
"""From a contiguous tensor, of one shape in all processes, to [processes, ...]: those of all, in their order."""


@dataclass(frozen=True)
class Ranks:
    """The processes that share a clip's tokens: the number of this one, their count, and the exchange between them."""

    rank: int = 0
    count: int = 1
    gather: Gather = torch.Tensor.clone


_RANKS: ContextVar[Ranks] = ContextVar("ranks", default=Ranks())  # noqa: B039 - frozen
"""This process among the others; compiled code asks for it at each call."""


@contextmanager
def among(ranks: Ranks) -> Iterator[None]:
    """Makes this thread's calls those of one of several processes, for the networks of this module."""
    token = _RANKS.set(ranks)
    try:
        yield
    finally:
        _RANKS.reset(token)


def shares(tokens: int, count: int) -> list[int]:
    """The number of tokens of each process: as even as they go, more for the first ones."""
    return [tokens // count + (rank < tokens % count) for rank in range(count)]


def _parts(x: torch.Tensor, sizes: Sequence[int]) -> list[torch.Tensor]:
    """The parts [batch, size, ...] of all processes, of which this one has x."""
    batch, rest, most = x.shape[0], x.shape[2:], max(sizes)
    if x.shape[1] < most:
        x = torch.cat([x, x.new_zeros(batch, most - x.shape[1], *rest)], dim=1)
    found = _RANKS.get().gather(x.contiguous()).reshape(len(sizes), *x.shape)
    return [part[:, :size] for part, size in zip(found, sizes, strict=True)]


def _whole(x: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
    """All parts' tokens behind each other, [batch, all sizes, ...]."""
    ranks = _RANKS.get()
    if x.shape[0] == 1 and len(set(sizes)) == 1:
        return ranks.gather(x.contiguous()).reshape(1, sum(sizes), *x.shape[2:])  # as they lie
    return torch.cat(_parts(x, sizes), dim=1)


def _gather_pair(key: torch.Tensor, value: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sizes = [whole.shape[0] * share for share in shares(whole.shape[1], _RANKS.get().count)]
    return _whole(key, sizes), _whole(value, sizes)


def _fake_pair(key: torch.Tensor, value: torch.Tensor, whole: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    first, second = (x.new_empty(x.shape[0], whole.shape[0] * whole.shape[1], *x.shape[2:]) for x in (key, value))
    return first, second


def gather_pair() -> Any:
    """The operator from one part's keys and values [batch, tokens, heads, head_dim] to those of all parts.

    Its last argument's shape [groups, tokens of a group] says how many there are. Both are gathered by one operator, in
    one order: processes whose code gathered them in different orders would take keys for values.
    """
    schema = "(Tensor key, Tensor value, Tensor whole) -> (Tensor, Tensor)"
    return library_operator(GATHER, schema, _gather_pair, _fake_pair)


class SlicedBlock(Block):
    """A block that is given a part's tokens, and `whole`, a tensor of the shape [groups, tokens of a group]."""

    def __init__(self, block: Block) -> None:
        Module.__init__(self)
        for name, child in block.named_children():
            self.add_module(name, child)
        self.scale_shift_table, self._rewrites = block.scale_shift_table, block._rewrites

    def forward(
        self,
        x: torch.Tensor,
        emb: torch.Tensor,
        text: torch.Tensor,
        picture: torch.Tensor | None,
        cos: torch.Tensor,
        sin: torch.Tensor,
        whole: torch.Tensor | None = None,
    ) -> torch.Tensor:
        sin_and_whole: Any = (sin, whole)  # for self-attention, past the rest of the block
        return super().forward(x, emb, text, picture, cos, sin_and_whole)

    def _self_attention(self, tokens: Rows, cos: torch.Tensor, sin: Any) -> torch.Tensor:
        sin, whole = sin
        attn, rope = self.attn1, (cos.flatten(0, 1), sin.flatten(0, 1))
        query, key = (
            rms_rope(projected, norm.weight, norm.eps, *rope, fused=NORM_ROPE in self._rewrites)
            for projected, norm in ((attn.to_q(tokens), attn.norm_q), (attn.to_k(tokens), attn.norm_k))
        )
        key, value = gather_pair()(key, _heads(attn, attn.to_v(tokens)), whole)
        if FP8_ATTENTION in self._rewrites:
            found = fp8_attention(query, key, value, _limit(attn, attn.norm_q), _limit(attn, attn.norm_k))
        else:
            found = attention(query, key, value, flash=FLASH in self._rewrites)
        return attn.to_out[0](found)


class SlicedDenoiser(DenoiserNetwork):
    """A denoiser whose blocks see this process's tokens: a part of each group of tokens with one timestep."""

    def __init__(self, network: DenoiserNetwork) -> None:
        Module.__init__(self)
        gather_pair()  # an engine that was built elsewhere calls it
        for name, child in network.named_children():
            self.add_module(name, child)
        self.blocks = torch.nn.ModuleList(SlicedBlock(block) for block in network.blocks)  # type: ignore[arg-type]
        self.scale_shift_table = network.scale_shift_table
        object.__setattr__(self, "origin", network)  # which keeps the part that it shares with others

    def traced_as(self) -> Any:
        """Context in which blocks are given other sizes than in a process alone: half of the tokens."""
        return among(Ranks(0, 2))

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        text_states: torch.Tensor,
        condition: torch.Tensor | None = None,
        image_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        batch, _, frames, height, width = sample.shape
        places = (frames, height // PATCH, width // PATCH)
        x = sample if condition is None else torch.cat([sample, condition], dim=1)
        x = self.patch_embedding(x).flatten(2).transpose(1, 2)
        temb, emb = self._time(timestep.reshape(batch, -1), sample.dtype)
        text = self.embedder.text_embedder(text_states)
        picture = None if image_states is None else self.embedder.image_embedder(image_states)
        groups = (temb.shape[1], -1)
        cos, sin = (table.unflatten(0, groups) for table in self.rope(*places))
        x, whole = x.unflatten(1, groups), cos.new_empty(cos.shape[:2])
        sizes = shares(whole.shape[1], _RANKS.get().count)
        x, cos, sin = (_part(each, axis, sizes) for each, axis in ((x, 2), (cos, 1), (sin, 1)))
        for block in self.blocks:
            x = block(x, emb, text, picture, cos, sin, whole)
        shift, scale = (self.scale_shift_table + temb[:, :, None]).chunk(2, dim=2)
        x = self.proj_out((self.norm_out(x.float()) * (1 + scale) + shift).to(sample.dtype))
        parts = _parts(x.flatten(1, 2), [groups[0] * size for size in sizes])
        x = torch.cat([part.unflatten(1, groups) for part in parts], dim=2)
        x = x.reshape(batch, *places, PATCH, PATCH, -1).permute(0, 6, 1, 2, 4, 3, 5)
        return x.reshape(batch, -1, frames, height, width)


def _part(x: torch.Tensor, axis: int, sizes: Sequence[int]) -> torch.Tensor:
    """This process's part of the tokens along an axis. Raises InputError for fewer tokens than processes."""
    if min(sizes) < 1:
        raise InputError(f"Expected at least {len(sizes)} tokens for as many processes, found {sum(sizes)}.")
    rank = _RANKS.get().rank
    return x.narrow(axis, sum(sizes[:rank]), sizes[rank]).contiguous()


def sliced(network: Module) -> SlicedDenoiser:
    """A Wan's denoiser over a part of the tokens, with the same weights; raises InputError for another network."""
    if not isinstance(network, DenoiserNetwork):
        raise InputError(f"Wan's denoisers take a part of the tokens, found {type(network).__name__}.")
    return SlicedDenoiser(network).eval().requires_grad_(False)

"""diffusers' video blocks computed with less waste: the same weights, the same result up to rounding.

Activations are [batch, frames, height, width, channels] throughout, so that convolutions, norms and linear
layers read one memory layout, and nothing is permuted between space and time. Every function takes the
diffusers module whose weights it uses. `on` names the rewrites that are switched on; see `REWRITES`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from .short_attention import attends_short, short_attention

REWRITES = {
    "channels_last": "one memory layout from end to end, and temporal convolutions as two-dimensional ones",
    "fold_frames": "keys and values of the prompt once for all frames",
    "fused_qkv": "queries, keys and values of narrow layers in one product",
    "short_attention": "attention over frames by a kernel made for few tokens",
    "channel_norm": "group norms from moments of whole channels, read in memory order",
    "split_skips": "skip connections are normalised and projected where they lie, not copied together first",
    "phase_upsample": "nearest upsampling and its convolution as four small kernels on the unscaled plane",
    "shared_prefix": "what both guidance branches have in common once for both",
    "plain_attention": "one wide head as two plain matrix products",
}
"""The rewrites by name, in the order in which benchmarks switch them on. `channels_last` comes with any other."""

FUSED_QKV_WIDTH = 512
"""Wider products fill a GPU one by one, and gain nothing by being joined."""
PLAIN_ATTENTION_WIDTH = 256
"""Heads wider than this have no fused attention kernel."""

On = frozenset[str]
Parts = Sequence[torch.Tensor]
"""An activation in pieces along its channels."""


def to_channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """Stores convolution weights in the layout that the functions here compute in; values stay."""
    for parameter in network.parameters():
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return network


def conv2d(x: torch.Tensor, conv: Any) -> torch.Tensor:
    """A convolution in height and width, of [batch, frames, height, width, channels]."""
    return _conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


def _conv2d(x: torch.Tensor, weight: torch.Tensor, bias: Any, stride: Any, padding: Any) -> torch.Tensor:
    y = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, bias, stride, padding)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def _conv_frames(x: torch.Tensor, conv: Any) -> torch.Tensor:
    """A (3, 1, 1) convolution: frames and places are the two axes of a two-dimensional one."""
    y = functional.conv2d(x.flatten(2, 3).permute(0, 3, 1, 2), conv.weight.squeeze(-1), conv.bias, 1, (1, 0))
    return y.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])


def group_norm(parts: Parts, norm: Any, on: On, *, over_frames: bool = False, silu: bool = True) -> torch.Tensor:
    """GroupNorm, and SiLU, of an activation's pieces, joined; over a frame's plane or over all frames' planes."""
    if "channel_norm" not in on:
        x = _joined(parts)
        y = x.flatten(1, 3) if over_frames else x.flatten(2, 3).flatten(0, 1)
        y = functional.group_norm(y.transpose(1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps)
        y = y.transpose(1, 2).reshape(x.shape)
        return functional.silu(y) if silu else y
    scale, shift = _scale_and_shift(parts, norm, over_frames)
    done, at = [], 0
    for part in parts:
        ahead = at + part.shape[-1]
        y = part.float() * scale[..., at:ahead] + shift[..., at:ahead]
        done.append((functional.silu(y) if silu else y).to(part.dtype))
        at = ahead
    return _joined(done)


def _scale_and_shift(parts: Parts, norm: Any, over_frames: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """What GroupNorm multiplies each channel by and adds, float32 [batch, frames or 1, 1, 1, channels].

    A group's moments follow exactly from its channels' own, and those are read in memory order.
    """
    dims = (1, 2, 3) if over_frames else (2, 3)
    moments = [torch.var_mean(part.float(), dims, correction=0, keepdim=True) for part in parts]
    var, mean = (_joined(each).unflatten(-1, (norm.num_groups, -1)) for each in zip(*moments, strict=True))
    centre = mean.mean(-1, keepdim=True)
    spread = (var + (mean - centre).square()).mean(-1, keepdim=True)
    scale = (torch.rsqrt(spread + norm.eps).expand_as(mean)).flatten(-2) * norm.weight.float()
    return scale, norm.bias.float() - centre.expand_as(mean).flatten(-2) * scale


def _joined(parts: Parts) -> torch.Tensor:
    if len(parts) == 1:
        return parts[0]
    batch = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], -1)


def resnet(parts: Parts, block: Any, emb: torch.Tensor | None, on: On) -> torch.Tensor:
    """ResnetBlock2D; `emb` is the time embedding, one for all frames, [batch, width]."""
    parts = parts if "split_skips" in on else (_joined(parts),)
    h = conv2d(group_norm(parts, block.norm1, on), block.conv1)
    if emb is not None:
        h = h + block.time_emb_proj(functional.silu(emb))[:, None, None, None]
    h = conv2d(group_norm((h,), block.norm2, on), block.conv2)
    return _shortcut(parts, block.conv_shortcut) + h


def _shortcut(parts: Parts, conv: Any) -> torch.Tensor:
    """The 1x1 convolution of the pieces as a sum of products; nothing where the block has none."""
    if conv is None:
        return _joined(parts)
    weights = conv.weight.flatten(1).split([part.shape[-1] for part in parts], 1)
    first, *rest = (functional.linear(part, weight) for part, weight in zip(parts, weights, strict=True))
    return sum(rest, first + conv.bias)


def temporal_conv(x: torch.Tensor, layer: Any, on: On) -> torch.Tensor:
    """TemporalConvLayer: four times norm, SiLU and a convolution over frames, and the input added."""
    h = x
    for stage in (layer.conv1, layer.conv2, layer.conv3, layer.conv4):
        h = _conv_frames(group_norm((h,), stage[0], on, over_frames=True), stage[-1])
    return x + h


def upsample(x: torch.Tensor, sampler: Any, on: On) -> torch.Tensor:
    """Upsample2D: twice the height and width by the nearest neighbour, then a 3x3 convolution."""
    if "phase_upsample" not in on:
        near = functional.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
        return conv2d(near.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]), sampler.conv)
    height, width = x.shape[2:4]
    y = _conv2d(x, _phase_kernels(sampler.conv.weight), None, 1, 1).unflatten(-1, (2, 2, -1)).contiguous()
    # Place (2i + p, 2j + q) is phase (p, q) of window (i + p, j + q): one step in p moves on in two axes of y.
    batch, frame, row, column, p, q, channel = y.stride()
    phases = (*x.shape[:2], height, 2, width, 2, y.shape[-1])
    y = y.as_strided(phases, (batch, frame, row, row + p, column, column + q, channel))
    return y.reshape(*x.shape[:2], 2 * height, 2 * width, -1) + sampler.conv.bias


def _phase_kernels(weight: torch.Tensor) -> torch.Tensor:
    """[out, in, 3, 3] as [4 * out, in, 2, 2]: a kernel for each place of the 2x2 that a place becomes.

    Along one axis the upper place sees (w0, w1 + w2) of the place before and its own, the lower one
    (w0 + w1, w2) of its own and the place after.
    """

    def halves(w: torch.Tensor, axis: int) -> list[torch.Tensor]:
        one, two, three = w.unbind(axis)
        return [torch.stack([one, two + three], axis), torch.stack([one + two, three], axis)]

    kernels = [kernel for rows in halves(weight.float(), 2) for kernel in halves(rows, 3)]
    return torch.cat(kernels).to(weight.dtype).contiguous(memory_format=torch.channels_last)


def _heads(x: torch.Tensor, attention: Any) -> torch.Tensor:
    return x.unflatten(-1, (attention.heads, -1))


def _queries_keys_values(x: torch.Tensor, attention: Any, on: On) -> list[torch.Tensor]:
    """Each [..., heads, head width]."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    if "fused_qkv" in on and x.shape[-1] <= FUSED_QKV_WIDTH and layers[0].bias is None:
        together = functional.linear(x, torch.cat([layer.weight for layer in layers])).chunk(3, -1)
        return [_heads(y, attention) for y in together]
    return [_heads(layer(x), attention) for layer in layers]


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, on: On = frozenset()) -> torch.Tensor:
    """Attention of [items, tokens, heads, width], giving [items, tokens, heads * width]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if "plain_attention" in on and q.shape[-1] > PLAIN_ATTENTION_WIDTH:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return (scores.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def attend_places(x: torch.Tensor, attention: Any, on: On) -> torch.Tensor:
    """Self-attention among the places of each frame."""
    batch, frames, height, width, _ = x.shape
    q, k, v = _queries_keys_values(x.reshape(batch * frames, height * width, -1), attention, on)
    return _out(_attend(q, k, v, on).reshape(batch, frames, height, width, -1), attention)


def _attend_frames(x: torch.Tensor, attention: Any, on: On) -> torch.Tensor:
    """Self-attention among the frames at each place."""
    batch, frames, height, width, _ = x.shape
    q, k, v = _queries_keys_values(x.flatten(2, 3), attention, on)
    if "short_attention" in on and attends_short(q):
        y = short_attention(q, k, v).flatten(-2)
    else:
        turned = (y.transpose(1, 2).reshape(batch * height * width, frames, *y.shape[3:]) for y in (q, k, v))
        y = _attend(*turned).reshape(batch, height * width, frames, -1).transpose(1, 2)
    return _out(y.reshape(batch, frames, height, width, -1), attention)


def _attend_context(x: torch.Tensor, attention: Any, context: torch.Tensor, on: On) -> torch.Tensor:
    """Attention of every place of every frame to the context [branches, tokens, width].

    `x` may have one batch item where the context has several: what both branches share so far.
    """
    batch, (_, frames, height, width, _) = context.shape[0], x.shape
    q = _heads(attention.to_q(x.flatten(1, 3)), attention)
    q = q.expand(batch, *q.shape[1:])
    if "fold_frames" not in on:
        q = q.reshape(batch * frames, height * width, *q.shape[2:])
        context = context.unsqueeze(1).expand(-1, frames, -1, -1).reshape(batch * frames, *context.shape[1:])
    k, v = (_heads(layer(context), attention) for layer in (attention.to_k, attention.to_v))
    return _out(_attend(q, k, v).reshape(batch, frames, height, width, -1), attention)


def _out(x: torch.Tensor, attention: Any) -> torch.Tensor:
    return attention.to_out[0](x)


def _feed_forward(x: torch.Tensor, ff: Any) -> torch.Tensor:
    value, gate = ff.net[0].proj(x).chunk(2, -1)
    return ff.net[2](value * functional.gelu(gate))


def spatial_transformer(x: torch.Tensor, model: Any, context: torch.Tensor, on: On) -> torch.Tensor:
    """Transformer2DModel: among the places of each frame, then to the context."""
    h = model.proj_in(group_norm((x,), model.norm, on, silu=False))
    for block in model.transformer_blocks:
        h = h + attend_places(block.norm1(h), block.attn1, on)
        h = h + _attend_context(block.norm2(h), block.attn2, context, on)
        h = h + _feed_forward(block.norm3(h), block.ff)
    return x + model.proj_out(h)


def temporal_transformer(x: torch.Tensor, model: Any, on: On) -> torch.Tensor:
    """TransformerTemporalModel: among the frames at each place, twice."""
    h = model.proj_in(group_norm((x,), model.norm, on, over_frames=True, silu=False))
    for block in model.transformer_blocks:
        h = h + _attend_frames(block.norm1(h), block.attn1, on)
        h = h + _attend_frames(block.norm2(h), block.attn2, on)
        h = h + _feed_forward(block.norm3(h), block.ff)
    return x + model.proj_out(h)

"""diffusers' video blocks computed with less waste: the same weights, the same result up to rounding.

Activations are [batch, frames, height, width, channels] throughout, so that convolutions, norms and linear
layers read one memory layout, and nothing is permuted between space and time. Every function takes the
diffusers module whose weights it uses. `on` names the rewrites that are switched on; see `REWRITES`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from .kernels import gelu, residual
from .kernels.norm import add_and_measure, channel_moments, scale_and_shift
from .kernels.short_attention import reference, short_attention

REWRITES = {
    "channels_last": "one memory layout from end to end",
    "fold_frames": "keys and values of the prompt once for all frames, and of all layers in one product",
    "joined_embeddings": "what the time embedding adds to all layers in one product",
    "fused_qkv": "queries, keys and values in one product",
    "gated_gelu": "the feed-forward's gate by a kernel of few instructions",
    "residual_products": "products added to the residual stream by themselves, their biases when it is read",
    "short_attention": "attention over frames by a kernel made for few tokens",
    "channel_norm": "group norms from moments of whole channels, with biases and sums taken on the way",
    "phase_upsample": "nearest upsampling and its convolution as four small kernels on the unscaled plane",
    "shared_prefix": "what both guidance branches have in common once for both",
    "plain_attention": "one wide head as two plain matrix products",
}
"""The rewrites by name, in the order in which benchmarks switch them on. `channels_last` comes with any other."""

PLAIN_ATTENTION_WIDTH = 256
"""Heads wider than this have no fused attention kernel."""
ATTENTION_PARTS = 8
"""Into how many parts plain attention cuts its queries: whole, scores of 2048x2048 pixels take 16 GiB a frame."""
JOINED_PHASES_WIDTH = 640
"""Phase kernels of wider layers run one by one: cuDNN takes a slow kernel for so many outputs at once."""

PHASES = ((0, 0), (0, 1), (1, 0), (1, 1))
"""The places, down and right, of the 2x2 that a place becomes."""

On = frozenset[str]
AttendContext = Callable[[torch.Tensor, Any], torch.Tensor]
"""Cross-attention of a layer, up to its last layer: from [batch or 1, frames, height, width, channels] to the same of
every guidance branch; see `cross_attention`."""
Offsets = dict[torch.nn.Module, torch.Tensor]
"""Offset of the time embedding to each residual block's first convolution, bias included."""


@dataclass(frozen=True)
class Activation:
    """An activation [batch, frames, height, width, channels], and its channels' moments where they are kept."""

    x: torch.Tensor
    moments: torch.Tensor | None = None


@dataclass(frozen=True)
class Stream:
    """The residual stream through a transformer's layers, [batch, frames, height, width, channels].

    `waiting` is a tensor still to be added at every place of the stream; a norm adds it in passing.
    """

    x: torch.Tensor
    waiting: torch.Tensor | None = None

    def read(self) -> torch.Tensor:
        """The stream plus its waiting tensor."""
        return self.x if self.waiting is None else self.x + self.waiting

    def add(self, y: torch.Tensor, layer: Any, on: On) -> Stream:
        """Returns stream + layer(y), and consumes this stream: on CUDA its memory is overwritten.

        A stream with a batch of 1 is broadcast to y's batch.
        """
        # A linear layer over anything else is exported as a product of batches, each with its copy of the weights.
        y = y.contiguous()
        if "residual_products" not in on:
            return Stream(self.x + layer(y), self.waiting)
        x = self.x.expand(y.shape[0], *self.x.shape[1:]).contiguous()
        x = residual.add_product(x, y, layer.weight)
        return Stream(x, self.waiting) if layer.bias is None else Stream(x, self.waiting).wait(layer.bias)

    def wait(self, more: torch.Tensor) -> Stream:
        """The stream with `more` added to its waiting tensor."""
        return Stream(self.x, more if self.waiting is None else self.waiting + more)


def prepare(network: torch.nn.Module, on: On) -> torch.nn.Module:
    """Makes a network ready for the functions here; engines of it find the operators that they call."""
    if "residual_products" in on:
        residual.register()
    return to_channels_last(network)


def to_channels_last(network: torch.nn.Module) -> torch.nn.Module:
    """Stores convolution weights in the layout that the functions here compute in; values stay."""
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    for parameter in network.parameters():
        if parameter.ndim in formats:
            parameter.data = parameter.data.contiguous(memory_format=formats[parameter.ndim])
    return network


def conv2d(x: torch.Tensor, conv: Any) -> torch.Tensor:
    """A convolution in height and width without its bias, of [batch, frames, height, width, channels]."""
    return _conv2d(x, conv.weight, conv.stride, conv.padding)


def _conv2d(x: torch.Tensor, weight: torch.Tensor, stride: Any, padding: Any) -> torch.Tensor:
    y = functional.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, None, stride, padding)
    return y.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


def conv3d(x: torch.Tensor, conv: Any, factor: torch.Tensor | None = None) -> torch.Tensor:
    """A convolution over frames alone, without its bias, of [batch, frames, height, width, channels], times a factor
    if there is one."""
    weight = conv.weight if factor is None else conv.weight * factor
    if x.is_cuda:
        y = functional.conv3d(x.permute(0, 4, 1, 2, 3), weight, None, conv.stride, conv.padding)
        return y.permute(0, 2, 3, 4, 1)
    # On a CPU the same in two dimensions. In three, PyTorch takes a slow kernel for some sizes, such as a single batch
    # item, and its result has another memory layout: an engine that is traced at other sizes would read it shuffled.
    planes = x.flatten(2, 3).permute(0, 3, 1, 2)
    y = functional.conv2d(planes, weight.flatten(3), None, conv.stride[:2], conv.padding[:2])
    return y.permute(0, 2, 3, 1).unflatten(2, x.shape[2:4])


def linear(x: torch.Tensor, layer: Any) -> torch.Tensor:
    """A linear layer without its bias."""
    return functional.linear(x, layer.weight)


def _rows(x: torch.Tensor) -> torch.Tensor:
    """[batch, frames, height, width, channels] as [batch * frames, height * width, channels]."""
    return x.flatten(2, 3).flatten(0, 1)


def measured(x: torch.Tensor, on: On) -> Activation:
    """An activation with its moments, if norms use them."""
    return Activation(x, channel_moments(_rows(x.contiguous())) if "channel_norm" in on else None)


def added(x: torch.Tensor, other: torch.Tensor | None, bias: torch.Tensor, on: On) -> Activation:
    """x + other + bias, measured."""
    if "channel_norm" not in on:
        return Activation(x + bias if other is None else x + other + bias)
    shape = x.shape if other is None else torch.broadcast_shapes(x.shape, other.shape)
    more = None if other is None else _rows(other.expand(shape).contiguous())
    total, moments = add_and_measure(_rows(x.expand(shape).contiguous()), more, bias)
    return Activation(total.reshape(shape), moments)


def joined(one: Activation, two: Activation) -> Activation:
    """Two signals side by side along their channels; a single batch item is repeated for all of the other's."""
    batch = max(one.x.shape[0], two.x.shape[0])
    x = torch.cat([part.x.expand(batch, *part.x.shape[1:]) for part in (one, two)], -1)
    if one.moments is None or two.moments is None:
        return Activation(x)
    items = x.shape[0] * x.shape[1]
    moments = [part.moments.repeat(items // part.moments.shape[0], 1, 1, 1) for part in (one, two)]  # type: ignore[union-attr]
    return Activation(x, torch.cat(moments, -1))


def group_norm(
    signal: Activation, norm: Any, offset: torch.Tensor | None = None, *, over_frames: bool = False, silu: bool = True
) -> torch.Tensor:
    """GroupNorm, and SiLU, of a signal plus an offset [batch or 1, channels], over one frame's plane or all frames'."""
    x = signal.x
    if signal.moments is None:
        x = x if offset is None else x + offset[:, None, None, None]
        y = x.flatten(1, 3) if over_frames else _rows(x)
        y = functional.group_norm(y.transpose(1, 2), norm.num_groups, norm.weight, norm.bias, norm.eps)
        y = y.transpose(1, 2).reshape(x.shape)
        return functional.silu(y) if silu else y
    batch, frames, height, width, channels = x.shape
    together = frames if over_frames else 1
    shape = (batch, frames // together, 1, 1, channels)
    parts = scale_and_shift(signal.moments, height * width, together, offset, norm)
    scale, shift = (part.reshape(shape) for part in parts)
    y = x.float() * scale + shift
    return (functional.silu(y) if silu else y).to(x.dtype)


def time_offsets(emb: torch.Tensor, blocks: list[Any], on: On) -> list[torch.Tensor]:
    """Offset [batch, channels] of each ResnetBlock2D to its first convolution, from the embedding [batch, width]."""
    emb = functional.silu(emb)
    if "joined_embeddings" not in on:
        return [block.time_emb_proj(emb) + block.conv1.bias for block in blocks]
    weight = torch.cat([block.time_emb_proj.weight for block in blocks])
    bias = torch.cat([block.time_emb_proj.bias + block.conv1.bias for block in blocks])
    return list(functional.linear(emb, weight, bias).split([len(block.conv1.bias) for block in blocks], -1))


def resnet(signal: Activation, block: Any, offset: torch.Tensor | None, on: On) -> Activation:
    """ResnetBlock2D; `offset` is from `time_offsets`, None for a block that knows no time."""
    h = conv2d(group_norm(signal, block.norm1), block.conv1)
    offset = block.conv1.bias[None] if offset is None else offset
    h = conv2d(group_norm(measured(h, on), block.norm2, offset), block.conv2)
    if block.conv_shortcut is None:
        return added(signal.x, h, block.conv2.bias, on)
    shortcut = functional.linear(signal.x, block.conv_shortcut.weight.flatten(1))
    return added(shortcut, h, block.conv2.bias + block.conv_shortcut.bias, on)


def temporal_conv(signal: Activation, layer: Any, on: On) -> Activation:
    """TemporalConvLayer: four times norm, SiLU and a convolution over frames, and the input added."""
    at, offset = signal, None
    for stage in (layer.conv1, layer.conv2, layer.conv3):
        at = measured(conv3d(group_norm(at, stage[0], offset, over_frames=True), stage[-1]), on)
        offset = stage[-1].bias[None]
    last = layer.conv4
    h = conv3d(group_norm(at, last[0], offset, over_frames=True), last[-1])
    return added(signal.x, h, last[-1].bias, on)


def temporal_share(mixer: Any) -> torch.Tensor:
    """Share of the temporal signal in AlphaBlender's mixture; the spatial signal has the rest."""
    share = torch.sigmoid(mixer.mix_factor)
    return share if mixer.switch_spatial_to_temporal_mix else 1 - share


def spatio_temporal_resnet(signal: Activation, block: Any, offsets: Offsets, on: On) -> Activation:
    """SpatioTemporalResBlock: a residual block in space, one over frames, and a mixture of both.

    The second block's contribution is scaled in its last weights: the mixture needs no pass of its own.
    """
    at = resnet(signal, block.spatial_res_block, offsets.get(block.spatial_res_block), on)
    temporal, share = block.temporal_res_block, temporal_share(block.time_mixer)
    offset = offsets.get(temporal, temporal.conv1.bias[None])
    h = measured(conv3d(group_norm(at, temporal.norm1, over_frames=True), temporal.conv1), on)
    h = conv3d(group_norm(h, temporal.norm2, offset, over_frames=True), temporal.conv2, share)
    return added(at.x, h, share * temporal.conv2.bias, on)


def downsample(signal: Activation, sampler: Any, on: On) -> Activation:
    """Downsample2D with its convolution."""
    return added(conv2d(signal.x, sampler.conv), None, sampler.conv.bias, on)


def upsample(signal: Activation, sampler: Any, on: On) -> Activation:
    """Upsample2D: twice the height and width by the nearest neighbour, then a 3x3 convolution."""
    conv, x = sampler.conv, signal.x
    if "phase_upsample" in on:
        return measured(_phases(x, conv.weight) + conv.bias, on)
    near = functional.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
    return added(conv2d(near.permute(0, 2, 3, 1).unflatten(0, x.shape[:2]), conv), None, conv.bias, on)


def _phases(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The upsampled plane's convolution from 2x2 windows of the plane itself."""
    kernels, height, width = _phase_kernels(weight), *x.shape[2:4]
    if len(weight) <= JOINED_PHASES_WIDTH:
        windows = _conv2d(x, torch.cat(kernels), 1, 1).chunk(4, -1)
    else:
        windows = [_conv2d(x, kernel, 1, 1) for kernel in kernels]
    # Place (2i + p, 2j + q) is phase (p, q) of window (i + p, j + q).
    places = [y[:, :, p : p + height, q : q + width] for y, (p, q) in zip(windows, PHASES, strict=True)]
    rows = [torch.stack(places[:2], 4), torch.stack(places[2:], 4)]
    return torch.stack(rows, 3).reshape(*x.shape[:2], 2 * height, 2 * width, -1)


def _phase_kernels(weight: torch.Tensor) -> list[torch.Tensor]:
    """[out, in, 3, 3] as four [out, in, 2, 2]: a kernel for each place of the 2x2 that a place becomes.

    Along one axis the upper place sees (w0, w1 + w2) of the place before and its own, the lower one
    (w0 + w1, w2) of its own and the place after.
    """

    def halves(w: torch.Tensor, axis: int) -> list[torch.Tensor]:
        one, two, three = w.unbind(axis)
        return [torch.stack([one, two + three], axis), torch.stack([one + two, three], axis)]

    kernels = [kernel for rows in halves(weight.float(), 2) for kernel in halves(rows, 3)]
    return [kernel.to(weight.dtype).contiguous(memory_format=torch.channels_last) for kernel in kernels]


def heads(x: torch.Tensor, attention: Any) -> torch.Tensor:
    """[..., channels] as [..., heads, head width]."""
    return x.unflatten(-1, (attention.heads, -1))


def _queries_keys_values(x: torch.Tensor, attention: Any, on: On) -> list[torch.Tensor]:
    """Each [..., heads, head width]."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    if "fused_qkv" in on and layers[0].bias is None:
        together = functional.linear(x, torch.cat([layer.weight for layer in layers])).chunk(3, -1)
        return [heads(y, attention) for y in together]
    return [heads(layer(x), attention) for layer in layers]


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, on: On = frozenset()) -> torch.Tensor:
    """Attention of [items, tokens, heads, width], giving [items, tokens, heads * width]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if "plain_attention" in on and q.shape[-1] > PLAIN_ATTENTION_WIDTH:
        return _plain_attention(q, k, v).transpose(1, 2).flatten(2)
    return functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _plain_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Attention of [items, heads, tokens, width] by two products, a part of the queries after another."""
    tokens, keys = q.shape[-2], k.transpose(-1, -2)
    ends = [tokens * part // ATTENTION_PARTS for part in range(ATTENTION_PARTS + 1)]
    parts = []
    for start, end in zip(ends, ends[1:], strict=False):
        scores = (q[..., start:end, :] * q.shape[-1] ** -0.5) @ keys
        parts.append(scores.float().softmax(-1).to(v.dtype) @ v)
    return torch.cat(parts, -2)


def score_bytes(tokens: int) -> int:
    """Bytes of plain attention's scores among `tokens` tokens in half precision: a part's, before and after softmax."""
    return 2 * 2 * tokens**2 // ATTENTION_PARTS


def attend_places(x: torch.Tensor, attention: Any, on: On) -> torch.Tensor:
    """Self-attention among the places of each frame, up to its last layer."""
    batch, frames, height, width, _ = x.shape
    q, k, v = _queries_keys_values(x.reshape(batch * frames, height * width, -1), attention, on)
    return attend(q, k, v, on).reshape(batch, frames, height, width, -1)


def attend_frames(x: torch.Tensor, attention: Any, on: On) -> torch.Tensor:
    """Self-attention among the frames at each place, up to its last layer."""
    q, k, v = _queries_keys_values(x.flatten(2, 3), attention, on)
    kernel = short_attention if "short_attention" in on else reference
    return kernel(q, k, v).flatten(-2).reshape(x.shape[:4] + (-1,))


def gated(x: torch.Tensor, ff: Any, on: On) -> torch.Tensor:
    """A feed-forward up to its last layer."""
    gate = gelu.gated_gelu if "gated_gelu" in on else gelu.reference
    return gate(ff.net[0].proj(x))


def spatial_transformer(signal: Activation, model: Any, attend_context: AttendContext, on: On) -> Activation:
    """Transformer2DModel: among the places of each frame, then to the context."""
    at = Stream(model.proj_in(group_norm(signal, model.norm, silu=False)))
    for block in model.transformer_blocks:
        at = at.add(attend_places(block.norm1(at.read()), block.attn1, on), block.attn1.to_out[0], on)
        attended = attend_context(block.norm2(at.read()), block.attn2)
        at = at.add(attended, block.attn2.to_out[0], on)
        at = at.add(gated(block.norm3(at.read()), block.ff, on), block.ff.net[2], on)
    return _projected(signal, at, model.proj_out, on)


def temporal_transformer(signal: Activation, model: Any, on: On) -> Activation:
    """TransformerTemporalModel: among the frames at each place, twice."""
    at = Stream(model.proj_in(group_norm(signal, model.norm, over_frames=True, silu=False)))
    for block in model.transformer_blocks:
        at = at.add(attend_frames(block.norm1(at.read()), block.attn1, on), block.attn1.to_out[0], on)
        at = at.add(attend_frames(block.norm2(at.read()), block.attn2, on), block.attn2.to_out[0], on)
        at = at.add(gated(block.norm3(at.read()), block.ff, on), block.ff.net[2], on)
    return _projected(signal, at, model.proj_out, on)


def _projected(signal: Activation, at: Stream, layer: Any, on: On) -> Activation:
    """The signal plus a layer of the stream; the waiting tensor, equal at every place, passes the layer by itself."""
    bias = layer.bias if at.waiting is None else layer.bias + linear(at.waiting, layer)
    return added(signal.x, linear(at.x, layer), bias, on)

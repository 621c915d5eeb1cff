"""The Triton kernels, and the functions that launch them; imported only where Triton is.

Every function here is registered as an operator by `operators`, under its own name. Sizes of blocks were
chosen by measurement on one H200; see benchmarks/notes.md.
"""

from dataclasses import dataclass

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

LOG2_E = 1.4426950408889634
SCALE_TILE = 4096
LONG_COLUMN = 4096
GELU_BLOCK = 2048


@triton.jit
def _short_attention(
    q_ptr, k_ptr, v_ptr, out_ptr, places, heads, tokens,
    q_batch, q_token, q_place, q_head,
    k_batch, k_token, k_place, k_head,
    v_batch, v_token, v_place, v_head,
    TOKENS: tl.constexpr, WIDTH: tl.constexpr, SCALE: tl.constexpr,
):  # fmt: skip
    """One head at one place of one batch item."""
    index = tl.program_id(0).to(tl.int64)
    head = index % heads
    place = index // heads % places
    batch = index // heads // places
    token = tl.arange(0, TOKENS).to(tl.int64)  # times the stride of a token, which 32 bits hold for small planes alone
    lane = tl.arange(0, WIDTH)
    there = (token < tokens)[:, None]
    q_at = q_ptr + batch * q_batch + place * q_place + head * q_head + token[:, None] * q_token + lane[None, :]
    k_at = k_ptr + batch * k_batch + place * k_place + head * k_head + token[:, None] * k_token + lane[None, :]
    v_at = v_ptr + batch * v_batch + place * v_place + head * v_head + token[:, None] * v_token + lane[None, :]
    q = tl.load(q_at, mask=there, other=0.0)
    k = tl.load(k_at, mask=there, other=0.0)
    v = tl.load(v_at, mask=there, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * SCALE
    scores = tl.where((token < tokens)[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    mixed = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / tl.sum(weights, 1)[:, None]
    row = ((batch * tokens + token[:, None]) * places + place) * heads + head
    tl.store(out_ptr + row * WIDTH + lane[None, :], mixed.to(out_ptr.dtype.element_ty), mask=there)


def short_attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """See `short_attention.short_attention`."""
    batch, tokens, places, heads, width = q.shape
    out = torch.empty((batch, tokens, places, heads, width), dtype=q.dtype, device=q.device)
    torch.library.wrap_triton(_short_attention)[(batch * places * heads,)](
        q, k, v, out, places, heads, tokens,
        *q.stride()[:4], *k.stride()[:4], *v.stride()[:4],
        TOKENS=max(16, triton.next_power_of_2(tokens)), WIDTH=width, SCALE=width**-0.5 * LOG2_E, num_warps=1,
    )  # fmt: skip
    return out


@triton.jit
def _moments(
    x_ptr, other_ptr, bias_ptr, sum_ptr, out_ptr, rows, channels, chunks, chunk_rows,
    ADD: tl.constexpr, BIAS: tl.constexpr, ROWS: tl.constexpr, CHANNELS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Mean and sum of squared distances of each channel over one chunk of rows of one item.

    Sums are taken about the chunk's first row, so that a mean far from zero costs no precision. Programs
    that run side by side read neighbouring memory: channels first, then chunks, then items.
    """
    index = tl.program_id(0)
    tiles = tl.cdiv(channels, CHANNELS)
    channel = index % tiles * CHANNELS + tl.arange(0, CHANNELS)
    chunk = index // tiles % chunks
    item = (index // tiles // chunks).to(tl.int64)
    inside = channel < channels
    first = chunk * chunk_rows
    count = tl.minimum(chunk_rows, rows - first)
    start = (item * rows + first) * channels + channel
    bias = tl.zeros((CHANNELS,), tl.float32)
    if BIAS:
        bias = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    pivot = tl.load(x_ptr + start, mask=inside, other=0.0).to(tl.float32) + bias
    if ADD:
        pivot += tl.load(other_ptr + start, mask=inside, other=0.0).to(tl.float32)
    one = tl.zeros((ROWS, CHANNELS), tl.float32)
    two = tl.zeros((ROWS, CHANNELS), tl.float32)
    row = tl.arange(0, ROWS)
    for at in tl.range(0, chunk_rows, ROWS, num_stages=STAGES):
        there = (at + row < count)[:, None] & inside[None, :]
        offset = start[None, :] + (at + row)[:, None].to(tl.int64) * channels
        x = tl.load(x_ptr + offset, mask=there, other=0.0).to(tl.float32)
        if ADD:
            x += tl.load(other_ptr + offset, mask=there, other=0.0).to(tl.float32)
        if ADD or BIAS:
            x = (x + bias[None, :]).to(sum_ptr.dtype.element_ty)
            tl.store(sum_ptr + offset, x, mask=there)
        away = tl.where(there, x.to(tl.float32) - pivot[None, :], 0.0)
        one += away
        two += away * away
    total = tl.sum(one, 0)
    mean = total / count
    at = out_ptr + (item * chunks + chunk) * 2 * channels + channel
    tl.store(at, pivot + mean, mask=inside)
    tl.store(at + channels, tl.sum(two, 0) - total * mean, mask=inside)


def _chunks(rows: int) -> tuple[int, int]:
    """Number of chunks of an item's rows, and rows of each chunk: work for every multiprocessor."""
    chunk_rows = 64
    while rows > 64 * chunk_rows or (chunk_rows < 256 and rows >= 16 * chunk_rows):
        chunk_rows *= 2
    return -(-rows // chunk_rows), chunk_rows


@dataclass(frozen=True)
class _MomentTile:
    """Layout of one program of `_moments`."""

    channels: int
    warps: int
    stages: int

    @classmethod
    def of(cls, rows: int, channels: int, *, writes: bool) -> "_MomentTile":
        """Fastest layout measured: a program that only reads gains by reading ahead, long columns by wider rows."""
        if writes and channels % 128 == 0 and rows > LONG_COLUMN:
            return cls(128, 4, 1)
        return cls(min(64, triton.next_power_of_2(channels)), 1 if writes else 2, 1 if writes else 3)


def _measure(
    x: torch.Tensor, other: torch.Tensor | None, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    items, rows, channels = x.shape
    chunks, chunk_rows = _chunks(rows)
    moments = torch.empty((items, chunks, 2, channels), dtype=torch.float32, device=x.device)
    total = x if other is None and bias is None else torch.empty_like(x)
    # In the place of pointers that go unused. Not x again: a compiled graph would compute it once for each.
    unused = torch.empty((1,), dtype=torch.float32, device=x.device)
    tile = _MomentTile.of(rows, channels, writes=total is not x)
    torch.library.wrap_triton(_moments)[(items * chunks * triton.cdiv(channels, tile.channels),)](
        x, unused if other is None else other, unused if bias is None else bias,
        unused if total is x else total, moments, rows, channels, chunks, chunk_rows,
        ADD=other is not None, BIAS=bias is not None,
        ROWS=8, CHANNELS=tile.channels, STAGES=tile.stages, num_warps=tile.warps,
    )  # fmt: skip
    return total, moments


def channel_moments(x: torch.Tensor) -> torch.Tensor:
    """See `norm.channel_moments`, for x [items, rows, channels]."""
    return _measure(x, None, None)[1]


def add_and_measure(
    x: torch.Tensor, other: torch.Tensor | None, bias: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `norm.add_and_measure`, for x and other [items, rows, channels]."""
    return _measure(x, other, bias)


@triton.jit
def _scale_and_shift(
    moments_ptr, offset_ptr, weight_ptr, bias_ptr, scale_ptr, shift_ptr,
    rows, channels, chunks, chunk_rows, items, offset_batch, outs_per_batch,
    EPS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr, CHUNKS: tl.constexpr,
):  # fmt: skip
    """A group's mean and variance from its channels' moments over `items` items of `chunks` chunks each.

    In one pass, about the mean of the group's first channel: as one of the group's own it is never so far
    from the others, in units of their deviation, that the difference of sums loses precision.
    """
    group = tl.program_id(0)
    out = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, WIDTH)
    inside = lane < GROUP
    channel = group * GROUP + lane
    offset = tl.zeros((WIDTH,), tl.float32)
    number = items * chunks
    pivot = tl.load(moments_ptr + out * number * 2 * channels + group * GROUP)
    if OFFSET:
        waiting = offset_ptr + out // outs_per_batch * offset_batch
        offset = tl.load(waiting + channel, mask=inside, other=0.0).to(tl.float32)
        pivot += tl.load(waiting + group * GROUP).to(tl.float32)
    step = tl.arange(0, CHUNKS)
    total = tl.zeros((CHUNKS, WIDTH), tl.float32)
    spread = tl.zeros((CHUNKS, WIDTH), tl.float32)
    for at in range(0, number, CHUNKS):
        index = at + step
        there = (index < number)[:, None] & inside[None, :]
        count = tl.minimum(chunk_rows, rows - index % chunks * chunk_rows)[:, None]
        place = moments_ptr + ((out * number + index) * 2 * channels)[:, None] + channel[None, :]
        away = tl.load(place, mask=there, other=0.0) + offset[None, :] - pivot
        inner = tl.load(place + channels, mask=there, other=0.0)
        total += tl.where(there, count * away, 0.0)
        spread += tl.where(there, inner + count * away * away, 0.0)
    size = 1.0 * items * rows * GROUP
    drift = tl.sum(tl.sum(total, 1), 0) / size
    centre = pivot + drift
    variance = tl.maximum(tl.sum(tl.sum(spread, 1), 0) / size - drift * drift, 0.0)
    weight = tl.load(weight_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    scale = weight / tl.sqrt(variance + EPS)
    shift = tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32) + (offset - centre) * scale
    tl.store(scale_ptr + out * channels + channel, scale, mask=inside)
    tl.store(shift_ptr + out * channels + channel, shift, mask=inside)


def scale_and_shift(
    moments: torch.Tensor,
    rows: int,
    items: int,
    offset: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    groups: int,
    eps: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `norm.scale_and_shift`; `items` in a row of moments [items, chunks, 2, channels] share their statistics."""
    count, chunks, _, channels = moments.shape
    outs = count // items
    scale = torch.empty((outs, channels), dtype=torch.float32, device=moments.device)
    shift = torch.empty_like(scale)
    per_batch = 1 if offset is None else outs // offset.shape[0]
    width = triton.next_power_of_2(channels // groups)
    torch.library.wrap_triton(_scale_and_shift)[(groups, outs)](
        moments, moments if offset is None else offset, weight, bias, scale, shift,
        rows, channels, chunks, _chunks(rows)[1], items, 0 if offset is None else offset.stride(0), per_batch,
        EPS=eps, OFFSET=offset is not None, GROUP=channels // groups, WIDTH=width,
        CHUNKS=max(16, SCALE_TILE // width), num_warps=4,
    )  # fmt: skip
    return scale, shift


@triton.jit
def _gelu(x):
    """x times the share of a normal distribution below x.

    By Numerical Recipes' approximation of erfc (section 6.2), which is within 1.2e-7 of it, relative, everywhere:
    fewer instructions than the library's erf, and right where 1 + erf(x) has no digits left.
    """
    z = tl.abs(x) * 0.7071067811865476
    t = 1.0 / (1.0 + 0.5 * z)
    p = 0.17087277
    p = p * t - 0.82215223
    p = p * t + 1.48851587
    p = p * t - 1.13520398
    p = p * t + 0.27886807
    p = p * t - 0.18628806
    p = p * t + 0.09678418
    p = p * t + 0.37409196
    p = p * t + 1.00002368
    below = 0.5 * t * tl.exp2((p * t - z * z - 1.26551223) * 1.4426950408889634)
    return x * tl.where(x > 0, 1.0 - below, below)


@triton.jit
def _gated_gelu(x_ptr, out_ptr, size, width, BLOCK: tl.constexpr):
    """Each row of x is `width` values, then their gates."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    there = at < size
    place = at + at // width * width
    value = tl.load(x_ptr + place, mask=there, other=0.0).to(tl.float32)
    gate = tl.load(x_ptr + place + width, mask=there, other=0.0).to(tl.float32)
    tl.store(out_ptr + at, (value * _gelu(gate)).to(out_ptr.dtype.element_ty), mask=there)


def gated_gelu(x: torch.Tensor) -> torch.Tensor:
    """See `gelu.gated_gelu`, for x [rows, 2 * width]."""
    rows, width = x.shape[0], x.shape[1] // 2
    out = torch.empty((rows, width), dtype=x.dtype, device=x.device)
    torch.library.wrap_triton(_gated_gelu)[(triton.cdiv(rows * width, GELU_BLOCK),)](
        x, out, rows * width, width, BLOCK=GELU_BLOCK, num_warps=4
    )
    return out

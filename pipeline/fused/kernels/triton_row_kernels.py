"""The Triton kernels whose programs hold a whole row, and the functions that launch them; imported where Triton is.

Every function here is registered as an operator by `operators`, under its own name.
"""

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]

LARGEST = 448.0
"""Of e4m3's numbers."""
LEAST_SCALE = 1e-12


def _launch(channels: int, most_warps: int = 8) -> dict[str, int]:
    """Numbers of a row that a program holds, and its warps."""
    block = triton.next_power_of_2(channels)
    return {"BLOCK": block, "num_warps": max(1, min(most_warps, block // 512))}


@triton.jit
def _rms_rope(
    x_ptr, weight_ptr, cos_ptr, sin_ptr, out_ptr, tokens,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, HALF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One token, of all heads: its pairs of channels lie side by side, and so do their angles, head by head."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < CHANNELS
    x = tl.load(x_ptr + row * CHANNELS + at, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + at, mask=inside, other=0.0).to(tl.float32)
    x = x * tl.rsqrt(tl.sum(x * x, 0) / CHANNELS + EPS) * weight
    even, odd = tl.split(tl.reshape(x, (BLOCK // 2, 2)))
    pair = tl.arange(0, BLOCK // 2)
    angle = row % tokens * HALF + pair % HALF
    cos = tl.load(cos_ptr + angle, mask=pair < CHANNELS // 2, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=pair < CHANNELS // 2, other=0.0)
    turned = tl.reshape(tl.join(even * cos - odd * sin, even * sin + odd * cos), (BLOCK,))
    tl.store(out_ptr + row * CHANNELS + at, turned.to(out_ptr.dtype.element_ty), mask=inside)


def rms_rope(x: torch.Tensor, weight: torch.Tensor, eps: float, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """See `rope.rms_rope`."""
    batch, tokens, channels = x.shape
    half = cos.shape[-1]
    out = torch.empty((batch, tokens, channels // (2 * half), 2 * half), dtype=x.dtype, device=x.device)
    torch.library.wrap_triton(_rms_rope)[(batch * tokens,)](
        x.contiguous(), weight, cos.contiguous(), sin.contiguous(), out, tokens,
        EPS=eps, CHANNELS=channels, HALF=half, **_launch(channels),
    )  # fmt: skip
    return out


@triton.jit
def _rounded_gelu(
    x_ptr, values_ptr, scale_ptr, WIDTH: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr, BLOCK: tl.constexpr
):
    """One row, held while its largest value is found."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row * WIDTH + at, mask=at < WIDTH, other=0.0).to(tl.float32)
    y = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    scale = tl.maximum(tl.max(tl.abs(y), 0) / LARGEST, LEAST)
    tl.store(values_ptr + row * WIDTH + at, (y * (1.0 / scale)).to(values_ptr.dtype.element_ty), mask=at < WIDTH)
    tl.store(scale_ptr + row, scale)


def rounded_gelu(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """See `fp8_product.rounded_gelu`, for x [rows, width]."""
    rows, width = x.shape
    values = torch.empty((rows, width), dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
    torch.library.wrap_triton(_rounded_gelu)[(rows,)](
        x.contiguous(), values, scale, WIDTH=width, LARGEST=LARGEST, LEAST=LEAST_SCALE, **_launch(width, 16)
    )
    return values, scale


@triton.jit
def _norm_rows(
    x_ptr, update_ptr, gate_ptr, offset_ptr, factor_ptr, shift_ptr, total_ptr, out_ptr, scale_ptr, tokens,
    EPS: tl.constexpr, CHANNELS: tl.constexpr, BLOCK: tl.constexpr, LARGEST: tl.constexpr, LEAST: tl.constexpr,
    ADDS: tl.constexpr, OFFSETS: tl.constexpr, BY_GROUP: tl.constexpr, ROUNDS: tl.constexpr,
):  # fmt: skip
    """One row, which stays in registers from its sum with the update to its last rounding."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < CHANNELS
    group = row // tokens * CHANNELS + at
    x = tl.load(x_ptr + row * CHANNELS + at, mask=inside, other=0.0)
    value = x.to(tl.float32)
    if ADDS:
        update = tl.load(update_ptr + row * CHANNELS + at, mask=inside, other=0.0).to(tl.float32)
        value += update * tl.load(gate_ptr + group, mask=inside, other=0.0)
        total = value.to(x.dtype)
        value = total.to(tl.float32)
        if OFFSETS:
            total = (value + tl.load(offset_ptr + at, mask=inside, other=0.0).to(tl.float32)).to(x.dtype)
        tl.store(total_ptr + row * CHANNELS + at, total, mask=inside)
    centred = tl.where(inside, value - tl.sum(value, 0) / CHANNELS, 0.0)
    normed = centred * tl.rsqrt(tl.sum(centred * centred, 0) / CHANNELS + EPS)
    place = group if BY_GROUP else at
    factor = tl.load(factor_ptr + place, mask=inside, other=0.0)
    found = normed * factor + tl.load(shift_ptr + place, mask=inside, other=0.0)
    if ROUNDS:
        scale = tl.maximum(tl.max(tl.abs(found), 0) / LARGEST, LEAST)
        tl.store(scale_ptr + row, scale)
        found = found * (1.0 / scale)
    tl.store(out_ptr + row * CHANNELS + at, found.to(out_ptr.dtype.element_ty), mask=inside)


def norm_rows(
    x: torch.Tensor,
    update: torch.Tensor | None,
    gate: torch.Tensor | None,
    offset: torch.Tensor | None,
    factor: torch.Tensor,
    shift: torch.Tensor,
    tokens: int,
    by_group: bool,
    eps: float,
    rounds: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `layer_norm`, for x and update [rows, channels]; gate, factor and shift fp32 [groups or 1, channels].

    Returns the sum (empty without an update), the result, and the scales of its rows (empty if it is not rounded).
    """
    rows, channels = x.shape
    total = torch.empty((rows if update is not None else 0, channels), dtype=x.dtype, device=x.device)
    out = torch.empty((rows, channels), dtype=torch.float8_e4m3fn if rounds else x.dtype, device=x.device)
    scale = torch.empty((rows if rounds else 0, 1), dtype=torch.float32, device=x.device)
    torch.library.wrap_triton(_norm_rows)[(rows,)](
        x.contiguous(),
        x if update is None else update.contiguous(),
        factor if gate is None else gate.contiguous(),
        factor if offset is None else offset.contiguous(),
        factor.contiguous(), shift.contiguous(), total, out, scale, tokens,
        EPS=eps, CHANNELS=channels, LARGEST=LARGEST, LEAST=LEAST_SCALE, ADDS=update is not None,
        OFFSETS=offset is not None, BY_GROUP=by_group, ROUNDS=rounds, **_launch(channels),
    )  # fmt: skip
    return total, out, scale

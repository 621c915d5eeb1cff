"""The Triton kernel behind `short_attention`; imported only where Triton is."""

import torch
import triton
import triton.language as tl


@triton.jit
def _kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    places,
    heads,
    tokens,
    scale,
    q_batch,
    q_token,
    q_place,
    q_head,
    k_batch,
    k_token,
    k_place,
    k_head,
    v_batch,
    v_token,
    v_place,
    v_head,
    TOKENS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    index = tl.program_id(0).to(tl.int64)
    head = index % heads
    place = (index // heads) % places
    batch = index // heads // places
    token = tl.arange(0, TOKENS)
    lane = tl.arange(0, WIDTH)
    there = (token < tokens)[:, None]
    q_at = q_ptr + batch * q_batch + place * q_place + head * q_head + token[:, None] * q_token + lane[None, :]
    k_at = k_ptr + batch * k_batch + place * k_place + head * k_head + token[:, None] * k_token + lane[None, :]
    v_at = v_ptr + batch * v_batch + place * v_place + head * v_head + token[:, None] * v_token + lane[None, :]
    q = tl.load(q_at, mask=there, other=0.0)
    k = tl.load(k_at, mask=there, other=0.0)
    v = tl.load(v_at, mask=there, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scale
    scores = tl.where((token < tokens)[None, :], scores, float("-inf"))
    weights = tl.exp2(scores - tl.max(scores, 1)[:, None])
    total = tl.sum(weights, 1)[:, None]
    mixed = tl.dot(weights.to(v.dtype), v, input_precision="ieee") / total
    # The output is contiguous [batch, tokens, places, heads, width].
    row = ((batch * tokens + token[:, None]) * places + place) * heads + head
    tl.store(out_ptr + row * WIDTH + lane[None, :], mixed.to(out_ptr.dtype.element_ty), mask=there)


def launch(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """See `short_attention.short_attention`."""
    batch, tokens, places, heads, width = q.shape
    out = torch.empty((batch, tokens, places, heads, width), dtype=q.dtype, device=q.device)
    scale = width**-0.5 * 1.4426950408889634  # exp2 instead of exp
    torch.library.wrap_triton(_kernel)[(batch * places * heads,)](
        q,
        k,
        v,
        out,
        places,
        heads,
        tokens,
        scale,
        *q.stride()[:4],
        *k.stride()[:4],
        *v.stride()[:4],
        TOKENS=max(16, triton.next_power_of_2(tokens)),
        WIDTH=width,
        num_warps=1,
    )
    return out

"""Each Triton kernel against plain PyTorch on the GPU at hand."""

import pytest
import torch

from i2v_tensorrt.pipeline.fused.kernels import gelu, layer_norm, norm, operators, residual, short_attention
from i2v_tensorrt.pipeline.fused.kernels.rounding import FP8, RoundedRows, rounded_gelu

DTYPES = [torch.float16, torch.bfloat16, torch.float32]
LIMIT = {torch.float16: 2e-3, torch.bfloat16: 1e-2, torch.float32: 1e-5}


def drawn(*shape: int, dtype: torch.dtype = torch.float32, mean: float = 0.0) -> torch.Tensor:
    return (torch.randn(shape, device="cuda") + mean).to(dtype)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    assert bool(torch.isfinite(found).all())
    return float((found.double() - expected.double()).norm() / expected.double().norm())


@pytest.fixture(autouse=True)
def needs_triton() -> None:
    pytest.importorskip("triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 16, 100, 5, 64), (1, 7, 33, 3, 32), (2, 40, 9, 2, 16)], ids=str)
def test_short_attention(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    q, k, v = drawn(*shape[:3], 3, *shape[3:], dtype=dtype).unbind(3)
    assert operators.serves(q, 1, 3, 4)
    found = short_attention.short_attention(q, k, v)
    expected = short_attention.reference(*(x.double() for x in (q, k, v)))
    assert distance(found, expected) < LIMIT[dtype]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 4096, 320), (2, 100, 24), (3, 5000, 1280), (6, 64, 96)], ids=str)
def test_moments(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = drawn(*shape, dtype=dtype, mean=20.0)
    group = torch.nn.GroupNorm(8, shape[-1]).cuda().to(dtype)
    torch.nn.init.normal_(group.weight)
    offset = drawn(2, shape[-1], dtype=dtype) if shape[0] % 2 == 0 else None
    with torch.no_grad():
        scale, shift = norm.scale_and_shift(norm.channel_moments(x), shape[1], 1, offset, group)
        found = x.float() * scale[:, None] + shift[:, None]
        added = (
            x.double() if offset is None else x.double() + offset.double().repeat_interleave(shape[0] // 2, 0)[:, None]
        )
        expected = group.double()(added.transpose(1, 2)).transpose(1, 2)
    assert distance(found, expected) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("other", [False, True])
def test_add_and_measure(other: bool, dtype: torch.dtype) -> None:
    x, bias = drawn(3, 777, 80, dtype=dtype), drawn(80, dtype=dtype)
    more = drawn(3, 777, 80, dtype=dtype) if other else None
    total, moments = norm.add_and_measure(x, more, bias)
    expected = x.double() + bias.double() + (0 if more is None else more.double())
    assert distance(total, expected) < LIMIT[dtype]
    group = torch.nn.GroupNorm(8, 80).cuda()
    with torch.no_grad():
        scale, shift = norm.scale_and_shift(moments, 777, 3, None, group)
        wanted = group(total.float().flatten(0, 1).T[None])[0].T
    assert distance(total.float().flatten(0, 1) * scale + shift, wanted) < 1e-4


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 7, 2560), (5, 24), (1, 4096, 10)], ids=str)
def test_gated_gelu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = drawn(*shape, dtype=dtype)
    value, gate = x.double().chunk(2, -1)
    assert distance(gelu.gated_gelu(x), value * torch.nn.functional.gelu(gate)) < LIMIT[dtype]


def test_gelu_is_right_far_below_zero() -> None:
    """Where 1 + erf(x) of float32 is 0 or noise."""
    gate = torch.linspace(-5, 9, 10_001, device="cuda")
    found = gelu.gated_gelu(torch.stack([torch.ones_like(gate), gate], 1))[:, 0].double()
    expected = gate.double() * torch.special.ndtr(gate.double())
    assert float(((found - expected) / expected.abs().clamp(min=1e-9)).abs().max()) < 1e-5


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_product_is_added_where_the_stream_lies(dtype: torch.dtype) -> None:
    shapes = (2, 3, 5, 7, 64), (2, 3, 5, 7, 96), (64, 96)
    stream, x, weight = (drawn(*shape, dtype=dtype) for shape in shapes)
    expected = stream.double() + x.double() @ weight.double().T
    found = residual.add_product(stream, x, weight)
    assert found.data_ptr() == stream.data_ptr()
    assert distance(found, expected) < LIMIT[dtype]


@pytest.mark.parametrize("shape", [(2, 33, 13824), (5, 48)], ids=str)
def test_gelu_is_rounded_by_rows(shape: tuple[int, ...]) -> None:
    if torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    x = drawn(*shape, dtype=torch.bfloat16) * 3
    found = rounded_gelu(x)
    assert found.values.dtype == FP8 and found.shape == x.shape
    expected = torch.nn.functional.gelu(x.double(), approximate="tanh")
    assert distance((found.values.float() * found.scale).reshape(shape), expected) < 2**-4
    largest = expected.flatten(0, -2).abs().amax(1, keepdim=True)
    assert distance(found.scale, largest / torch.finfo(FP8).max) < 1e-4


@pytest.mark.parametrize("rounds", [False, True])
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("shape", [(2, 3, 40, 5120), (1, 1, 7, 48)], ids=str)
def test_layer_norm_with_what_stands_around_it(shape: tuple[int, ...], adds: bool, rounds: bool) -> None:
    if rounds and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    x, update = (drawn(*shape, dtype=torch.bfloat16, mean=3.0) for _ in range(2))
    gate, factor, shift = (drawn(*shape[:2], shape[3]) for _ in range(3))
    offset = drawn(shape[3], dtype=torch.bfloat16)
    found, wanted = {}, {}
    for each in ((factor, shift), (factor[0, 0], shift[0, 0])):
        modulation = layer_norm.Modulation(*each, 1e-6)
        for results, fused in ((found, True), (wanted, False)):
            if adds:
                results["sum"], rows = layer_norm.add_and_norm(
                    x, update, gate, offset, modulation, rounds=rounds, fused=fused
                )
            else:
                rows = layer_norm.norm_rows(x, modulation, rounds=rounds, fused=fused)
            whole = rows.values.float() * rows.scale if isinstance(rows, RoundedRows) else rows
            assert rows.shape == (shape[0], shape[1] * shape[2], shape[3])
            results["normed"] = whole.reshape(rows.shape)
        for name, tensor in found.items():
            assert distance(tensor, wanted[name]) < (2**-5 if rounds else 2**-8)

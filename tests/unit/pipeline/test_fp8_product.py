"""Products in fp8 against their definition by hand, and against what they round."""

import pytest
import torch

from i2v_tensorrt.pipeline.fused.fp8_product import RowScaledLinear, with_fp8_products
from i2v_tensorrt.pipeline.fused.kernels.flash_attention import attention, fp8_attention
from i2v_tensorrt.pipeline.fused.kernels.rounding import FP8, rounded_gelu, rounded_rows

TWO_ROUNDINGS = 2**-4 * 2**0.5
"""What two numbers of three bits' mantissa leave of their product's relative error at the most, were it one number."""


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """The root mean square of the difference, relative to what was wanted."""
    return float((found.float() - wanted.float()).norm() / wanted.float().norm())


@pytest.fixture
def linear() -> torch.nn.Linear:
    layer = torch.nn.Linear(64, 32, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(drawn(32, 64, seed=1) * torch.logspace(-3, 3, 32)[:, None])
    return layer


def test_a_product_is_that_of_its_rounded_rows(linear: torch.nn.Linear) -> None:
    x, rounded = drawn(2, 5, 64), RowScaledLinear(linear)
    rows = rounded_rows(x)
    assert rounded.weight.dtype == rows.values.dtype == FP8
    weight = rounded.weight.float() * rounded.weight_scale.t()
    by_hand = (rows.values.float() * rows.scale) @ weight.t() + linear.bias.float()
    assert error(rounded(x), by_hand.reshape(2, 5, 32)) < 2**-8, "nothing but the result's own rounding"
    assert torch.equal(rounded(rows), rounded(x)), "what was rounded once serves as well"


def test_rows_of_any_size_lose_the_same_share(linear: torch.nn.Linear) -> None:
    x = drawn(7, 64) * torch.logspace(-4, 4, 7)[:, None].bfloat16()
    found, wanted = RowScaledLinear(linear)(x), linear(x)
    for row in range(7):
        assert error(found[row], wanted[row]) < TWO_ROUNDINGS
    assert error(found[:, :16], wanted[:, :16]) < TWO_ROUNDINGS, "small rows of the weight too"


def test_gelu_is_rounded_as_its_rows_are() -> None:
    x = drawn(3, 5, 64)
    found, wanted = rounded_gelu(x), rounded_rows(torch.nn.functional.gelu(x, approximate="tanh"))
    assert found.shape == x.shape
    assert torch.equal(found.values.float() * found.scale, wanted.values.float() * wanted.scale)


def test_zeros_stay_zeros(linear: torch.nn.Linear) -> None:
    with torch.no_grad():
        linear.weight[3].zero_()
    found = RowScaledLinear(linear)(torch.zeros(4, 64, dtype=torch.bfloat16))
    assert torch.equal(found, linear.bias.expand(4, -1))


def test_a_modules_layers_are_rounded_and_it_stays_itself() -> None:
    made = torch.nn.Sequential(torch.nn.Linear(32, 32), torch.nn.Sequential(torch.nn.Linear(32, 20)), torch.nn.GELU())
    twin = with_fp8_products(made)
    assert isinstance(twin.get_submodule("0"), RowScaledLinear)
    assert type(made.get_submodule("0")) is torch.nn.Linear
    assert twin.get_submodule("1.0") is made.get_submodule("1.0"), "20 is no size for the kernels"


def test_attention_in_fp8_is_near_and_does_not_see_the_keys_mean() -> None:
    query, key, value = (drawn(2, 48, 4, 32, seed=seed) for seed in range(3))
    shifted = (key.float() + 20 * drawn(1, 1, 4, 32, seed=3).float()).bfloat16()
    query_limit, key_limit = query.abs().amax((0, 1, 3)).float(), shifted.abs().amax((0, 1, 3)).float()
    wanted = attention(query.float(), shifted.float(), value.float(), flash=False)
    assert error(fp8_attention(query, shifted, value, query_limit, key_limit), wanted) < 0.1
    coarse = attention(*((x / 8).to(FP8).float() * 8 for x in (query, shifted, value)), flash=False)
    assert error(coarse, wanted) > 0.2, "a control: with their mean, the keys' own differences are lost"

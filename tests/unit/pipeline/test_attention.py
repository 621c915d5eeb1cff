"""Attention over more items than PyTorch's kernels on CUDA count, cut into parts."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from torch.nn import functional

from i2v_tensorrt.pipeline.fused.kernels import attention as module
from i2v_tensorrt.pipeline.fused.kernels.attention import LimitedAttention, attention, limit_attention


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many items each call of PyTorch's attention has, where five are too many."""
    found: list[int] = []
    original = functional.scaled_dot_product_attention

    def counted(q: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        found.append(len(q))
        return original(q, *rest, **options)

    monkeypatch.setattr(module, "MOST_ITEMS", 4)
    monkeypatch.setattr(module, "exceeds", lambda x: len(x) > 4)
    monkeypatch.setattr(functional, "scaled_dot_product_attention", counted)
    return found


def random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("items", "parts"), [(3, [3]), (4, [4]), (9, [4, 4, 1])])
def test_many_items_give_the_same_in_parts(calls: list[int], items: int, parts: list[int]) -> None:
    q, k, v = random(items, 2, 5, 8), random(items, 2, 7, 8), random(items, 2, 7, 8)
    found = attention(q, k, v)
    assert calls == parts
    torch.testing.assert_close(found, functional.scaled_dot_product_attention(q, k, v))


@pytest.mark.parametrize("crossed", [False, True])
def test_a_layer_of_diffusers_gives_the_same_in_parts(calls: list[int], crossed: bool) -> None:
    layer = Attention(8, 8 if crossed else None, heads=2, dim_head=4).eval()
    x, other = random(9, 5, 8), random(9, 7, 8) if crossed else None
    expected = layer(x, encoder_hidden_states=other)
    calls.clear()
    network = torch.nn.Sequential(layer)
    limit_attention(network)
    limit_attention(network)  # once is enough
    assert isinstance(layer.processor, LimitedAttention)
    assert not isinstance(vars(layer.processor)["inner"], LimitedAttention)
    torch.testing.assert_close(layer(x, encoder_hidden_states=other), expected)
    assert calls == [4, 4, 1]


def test_a_layer_of_a_vae_says_nothing_of_what_it_is_given(caplog: pytest.LogCaptureFixture) -> None:
    layer = Attention(8, heads=1, dim_head=8, norm_num_groups=2, spatial_norm_dim=None).eval()
    limit_attention(torch.nn.Sequential(layer))
    diffusers_log = logging.getLogger("diffusers")
    diffusers_log.addHandler(caplog.handler)
    try:
        layer(random(1, 8, 4, 4), temb=None)
    finally:
        diffusers_log.removeHandler(caplog.handler)
    assert caplog.text == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_gpu_takes_more_than_65535_items() -> None:
    q = torch.randn(131_072, 2, 64, 4, device="cuda", dtype=torch.half)
    found, last = attention(q, q, q), q[-9:]
    expected = functional.scaled_dot_product_attention(last, last, last)
    torch.testing.assert_close(found[-9:], expected, rtol=1e-2, atol=1e-2)

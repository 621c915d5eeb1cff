"""The functions that fused networks are made of, each beside its plain definition."""

import pytest
import torch

from i2v_tensorrt.pipeline.fused import blocks
from i2v_tensorrt.pipeline.fused.kernels.norm import add_and_measure, channel_moments, scale_and_shift
from i2v_tensorrt.pipeline.fused.kernels.short_attention import short_attention

from ...fidelity.test_fused import EXACT, distance


@pytest.mark.parametrize("together", [8, 1024], ids=["one by one", "together"])
@torch.no_grad()
def test_phases_are_an_upsampled_convolution(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "JOINED_PHASES_WIDTH", together)
    conv = torch.nn.Conv2d(6, 10, 3, padding=1)
    x = torch.randn(2, 3, 5, 7, 6)
    near = torch.nn.functional.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
    expected = torch.nn.functional.conv2d(near, conv.weight, None, 1, 1).permute(0, 2, 3, 1).unflatten(0, (2, 3))
    assert distance(blocks._phases(x, conv.weight), expected) < EXACT


@pytest.mark.parametrize("factor", [None, 0.25])
@pytest.mark.parametrize("batch", [1, 2])
@torch.no_grad()
def test_a_convolution_over_frames_keeps_its_layout_whatever_the_batch(batch: int, factor: float | None) -> None:
    """An engine that is traced for two guidance branches reads the result for one as it was laid out for two."""
    conv = torch.nn.Conv3d(6, 10, (3, 1, 1), padding=(1, 0, 0))
    blocks.to_channels_last(conv)
    x = torch.randn(batch, 5, 3, 4, 6)
    found = blocks.conv3d(x, conv, None if factor is None else torch.tensor(factor))
    expected = torch.nn.functional.conv3d(x.permute(0, 4, 1, 2, 3), conv.weight * (factor or 1), None, 1, (1, 0, 0))
    assert distance(found, expected.permute(0, 2, 3, 4, 1)) < EXACT
    assert found.is_contiguous()


@pytest.mark.parametrize("items", [1, 3], ids=["by frame", "over frames"])
@pytest.mark.parametrize("offset", [None, 1, 2], ids=["no offset", "one for all", "one a batch item"])
@torch.no_grad()
def test_scale_and_shift_are_group_norm(items: int, offset: int | None) -> None:
    """With means far from zero, where a sum of squares would lose its last digits."""
    x = torch.randn(6, 20, 16) + 50 * torch.randn(16)
    norm = torch.nn.GroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight)
    waiting = None if offset is None else torch.randn(offset, 16)
    scale, shift = scale_and_shift(channel_moments(x), 20, items, waiting, norm)
    found = x.unflatten(0, (-1, items)) * scale[:, None, None] + shift[:, None, None]
    added = x if waiting is None else x + waiting.repeat_interleave(6 // len(waiting), 0)[:, None]
    expected = norm(added.unflatten(0, (-1, items)).flatten(1, 2).double().transpose(1, 2).float())
    assert distance(found.flatten(1, 2), expected.transpose(1, 2)) < 1e-4


@pytest.mark.parametrize("other", [False, True])
def test_add_and_measure_adds_and_measures(other: bool) -> None:
    x, bias = torch.randn(2, 9, 8), torch.randn(8)
    more = torch.randn(2, 9, 8) if other else None
    total, moments = add_and_measure(x, more, bias)
    torch.testing.assert_close(total, x + bias if more is None else x + more + bias)
    torch.testing.assert_close(moments, channel_moments(total))


def test_joined_moments_are_those_of_the_joined() -> None:
    one, two = torch.randn(1, 3, 4, 4, 8), torch.randn(2, 3, 4, 4, 16)
    on = frozenset({"channel_norm"})
    both = blocks.joined(blocks.measured(one, on), blocks.measured(two, on))
    again = blocks.measured(both.x, on)
    assert both.x.shape == (2, 3, 4, 4, 24)
    torch.testing.assert_close(both.moments, again.moments)


def test_short_attention_is_attention_among_tokens() -> None:
    q, k, v = torch.randn(3, 2, 5, 7, 3, 16)
    found = short_attention(q, k, v)
    weights = (torch.einsum("bsphd,btphd->bphst", q, k) / 4).softmax(-1)
    torch.testing.assert_close(found, torch.einsum("bphst,btphd->bsphd", weights, v))


@pytest.mark.parametrize("tokens", [1, 5, 8, 17, 63, 100])
@torch.no_grad()
def test_attention_in_parts_is_attention_for_any_number_of_tokens(tokens: int) -> None:
    q, k, v = torch.randn(3, 2, 1, tokens, 24, generator=torch.Generator().manual_seed(tokens))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert distance(blocks._plain_attention(q, k, v), expected) < EXACT


def test_weights_keep_their_values_and_change_their_layout() -> None:
    conv = torch.nn.Conv2d(4, 8, 3)
    network = torch.nn.Sequential(conv, torch.nn.GroupNorm(2, 8))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    blocks.to_channels_last(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert conv.weight.is_contiguous(memory_format=torch.channels_last)

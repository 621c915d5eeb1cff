"""Dense blocks by source: the same results, other structures left alone, and one memory layout beside it."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from i2v_tensorrt.pipeline.filters.dense_block import BySource, by_source
from i2v_tensorrt.pipeline.filters.spandrel_network import REWRITES, Upscaler, rewritten

WIDTH, GROW = 12, 6


class ResidualDenseBlock_5C(nn.Module):  # noqa: N801 - spandrel's name
    """The published block as its paper has it, under the names that spandrel gives its parts."""

    def __init__(self, bias: bool = True, slope: float | None = 0.2) -> None:
        super().__init__()
        self.conv1x1 = None
        for number in range(1, 5):
            activation = nn.ReLU(inplace=True) if slope is None else nn.LeakyReLU(slope, inplace=True)
            layer = nn.Conv2d(WIDTH + (number - 1) * GROW, GROW, 3, padding=1, bias=bias)
            setattr(self, f"conv{number}", nn.Sequential(layer, activation))
        self.conv5 = nn.Conv2d(WIDTH + 4 * GROW, WIDTH, 3, padding=1, bias=bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found = [x]
        for number in range(1, 6):
            found.append(getattr(self, f"conv{number}")(torch.cat(found, dim=1)))
        return found[-1] * 0.2 + x


def network(block: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, WIDTH, 3, padding=1), nn.Sequential(block), nn.Conv2d(WIDTH, 3, 3, padding=1))


@pytest.mark.parametrize(("bias", "slope"), [(True, 0.2), (False, 0.1), (True, None)])
def test_a_block_gives_what_it_gave(bias: bool, slope: float | None) -> None:
    plain, image = network(ResidualDenseBlock_5C(bias, slope)), torch.rand(2, 3, 9, 14)
    made = by_source(copy.deepcopy(plain))
    assert sum(isinstance(part, BySource) for part in made.modules()) == 1
    assert torch.allclose(made(image), plain(image), atol=1e-5)
    changed = next(part for part in made.modules() if isinstance(part, BySource))
    changed.shares[2] = nn.Parameter(torch.zeros_like(changed.shares[2]))
    assert not torch.allclose(made(image), plain(image), atol=1e-3)


def plus(block: nn.Module) -> None:
    block.conv1x1 = nn.Conv2d(WIDTH, GROW, 1, bias=False)


def mirrored(block: nn.Module) -> None:
    block.get_submodule("conv3.0").padding_mode = "reflect"  # type: ignore[assignment]


def normed(block: nn.Module) -> None:
    block.get_submodule("conv2").insert(1, nn.BatchNorm2d(GROW))  # type: ignore[operator]


@pytest.mark.parametrize("change", [plus, mirrored, normed])
def test_another_structure_stays_as_it_is(change: Callable[[nn.Module], None]) -> None:
    block = ResidualDenseBlock_5C()
    change(block)
    made = by_source(network(block))
    assert not any(isinstance(part, BySource) for part in made.modules())


def test_a_network_of_convolutions_computes_in_one_layout_and_one_with_products_does_not() -> None:
    plain, image = network(ResidualDenseBlock_5C()).eval(), torch.rand(1, 3, 16, 16)
    expected = plain(image)
    made = rewritten(copy.deepcopy(plain), REWRITES)
    assert made.layout == torch.channels_last
    assert all(part.is_contiguous(memory_format=torch.channels_last) for part in made.parameters() if part.ndim == 4)
    assert torch.allclose(made(image), expected, atol=1e-5)
    assert rewritten(nn.Sequential(nn.Linear(4, 4)), REWRITES).layout == torch.contiguous_format
    assert isinstance(rewritten(plain, ()), Upscaler) and rewritten(plain, ()).layout == torch.contiguous_format

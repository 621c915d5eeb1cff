"""Repeated blocks of a network, and functions called in their place."""

from typing import Any

import torch
from torch.nn import Linear, ModuleList, Sequential

from i2v_tensorrt.engine_builder.graph.repeated_blocks import called_instead, repeated_blocks
from i2v_tensorrt.runtime.external.fp8_linear import FP8, Fp8Linear


class Block(torch.nn.Module):
    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.inner = ModuleList([Linear(width, width), Linear(width, width)])

    def forward(self, x: torch.Tensor, factor: float = 1.0) -> torch.Tensor:
        return x + factor * self.inner[1](self.inner[0](x))


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = ModuleList([Block(), Block(), Block()])
        self.one = ModuleList([Block()])
        self.mixed = ModuleList([Block(4), Block(8)])
        self.empty = ModuleList([torch.nn.GELU(), torch.nn.GELU()])
        self.ends = Sequential(Linear(4, 4), Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x, factor=2.0)
        return x


def test_blocks_of_one_kind_are_found_and_none_within_them() -> None:
    network = Network()
    found = repeated_blocks(network)
    # The block that stands alone in a list and one of the mixed list are of the same kind.
    assert found == {"blocks.0": (*network.blocks, network.one[0], network.mixed[0])}


def test_the_last_block_may_differ() -> None:
    blocks = ModuleList([Block(), Block(), Block(8)])
    assert repeated_blocks(torch.nn.ModuleDict({"blocks": blocks})) == {"blocks.0": (*blocks[:2],)}


def test_blocks_in_sequences_are_found_and_the_sequences_are_not() -> None:
    """A UNet's stages are lists of sequences, whose members the UNet calls itself."""
    blocks = [Block(), Block()]
    stages = ModuleList([Sequential(Linear(4, 4), ModuleList([block])) for block in blocks])
    assert repeated_blocks(torch.nn.ModuleDict({"stages": stages})) == {"stages.0.1.0": tuple(blocks)}


def test_a_block_within_a_larger_one_stays_its_part() -> None:
    class Outer(Block):
        def __init__(self) -> None:
            super().__init__()
            self.within = ModuleList([Block()])

    outer = ModuleList([Outer(), Outer()])
    network = torch.nn.ModuleDict({"first": ModuleList([Block()]), "outer": outer})
    assert repeated_blocks(network) == {"outer.0": tuple(outer)}


def test_functions_are_called_in_the_blocks_place_and_no_longer() -> None:
    network, x = Network(), torch.randn(1, 4)
    expected, seen = network(x), list[Any]()

    def noting(block: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor:
        seen.append((block, kwargs))
        return Block.forward(block, *args, **kwargs)  # pyright: ignore[reportArgumentType]

    try:
        with called_instead({block: noting for block in network.blocks[:2]}):
            assert torch.equal(network(x), expected)
            raise InterruptedError
    except InterruptedError:
        pass
    assert [block for block, _ in seen] == [*network.blocks[:2]] and seen[0][1] == {"factor": 2.0}
    assert torch.equal(network(x), expected) and len(seen) == 2
    assert not any("forward" in vars(block) for block in network.blocks)


def test_a_product_in_fp8_is_that_of_the_rounded_numbers() -> None:
    layer = Fp8Linear(32, 16, bias=True, input_scale=True, dtype=torch.bfloat16)
    draw = torch.Generator().manual_seed(0)
    weight = (100 * torch.randn(16, 32, generator=draw)).to(FP8)
    scale, input_scale = torch.tensor(0.01), torch.tensor(0.5)
    bias = torch.randn(16, generator=draw).bfloat16()
    state = {"weight": weight, "weight_scale": scale, "input_scale": input_scale, "bias": bias}
    x = torch.randn(2, 3, 32, generator=draw).bfloat16()
    found = torch.func.functional_call(layer, state, (x,))
    rounded = (x / input_scale).to(FP8).double() * input_scale
    expected = rounded @ (weight.double() * scale).T + bias.double()
    assert found.dtype is torch.bfloat16 and found.shape == (2, 3, 16)
    torch.testing.assert_close(found.double(), expected, rtol=1e-2, atol=1e-2)
    plain = x.double() @ (weight.double() * scale).T + bias.double()
    assert (found.double() - plain).abs().max() > 3 * (found.double() - expected).abs().max()

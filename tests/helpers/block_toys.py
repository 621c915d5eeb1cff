"""A network of equal blocks, and the engine of one of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import ClassVar

import torch

from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.inductor.block_runner import BlockRunner
from i2v_tensorrt.engine_builder.store.store import Plan

from .inductor_toys import build
from .toys import CPU

BLOCKS = 5


class Block(torch.nn.Module):
    """A layer with a weight of its own shape, whose second argument is none in some networks."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.norm, self.first, self.second = (
            torch.nn.LayerNorm(4),
            torch.nn.Linear(4, width),
            torch.nn.Linear(width, 4, bias=False),
        )
        self.mix = torch.nn.Parameter(torch.randn(1))

    def forward(self, x: torch.Tensor, nothing: None, strength: torch.Tensor) -> torch.Tensor:
        """From x [batch, places, 4] to the same; strength [batch, 4]."""
        found = self.second(torch.tanh(self.first(self.norm(x))))
        return x + torch.sigmoid(self.mix) * found * strength[:, None].to(x.dtype)


class Repeated(torch.nn.Module):
    """A layer, blocks, and a layer, of random weights by `seed`."""

    repeated: ClassVar[str] = "body.blocks"

    def __init__(self, seed: int = 0, count: int = BLOCKS, width: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.begin = torch.nn.Linear(4, 4)
            self.body = torch.nn.Module()
            self.body.blocks = torch.nn.ModuleList(Block(width) for _ in range(count))
            self.end = torch.nn.Linear(4, 4)
        self.eval().requires_grad_(False)

    @property
    def blocks(self) -> list[Block]:
        return list(self.body.blocks)  # pyright: ignore[reportArgumentType]

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        shape = sample.shape
        x = self.begin(sample.flatten(2).transpose(1, 2))
        for block in self.blocks:
            x = block(x, None, strength)
        return self.end(x).transpose(1, 2).reshape(shape)


def block_plan(folder: Path, spec: EngineSpec | None = None, device: torch.device = CPU) -> Plan:
    """The engine of a network of two blocks."""
    return build(folder, device, spec, partial(Repeated, count=2))


def block_runner(plan: Plan, network: torch.nn.Module, device: torch.device = CPU) -> BlockRunner:
    """A runner of the engine over the network."""
    return BlockRunner(plan, plan.manifest.spec, lambda: network, device)

"""A network with every kind of tensor that an engine without weights must find again, and its engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.base import OUTSIDE
from i2v_tensorrt.engine_builder.backends.inductor.backend import InductorBackend
from i2v_tensorrt.engine_builder.backends.inductor.runner import InductorRunner
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from .toys import InProcess, ToySource, toy_spec

MakeNetwork = Callable[[], torch.nn.Module]


class Mixed(torch.nn.Module):
    """A kernel stored channels last, a tied layer, an unused one, a buffer kept unsaved; four numbers, and one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.linear = torch.nn.Linear(4, 4)
            self.mix = torch.nn.Parameter(torch.randn(1))
            self.unused = torch.nn.Linear(2, 2)
            self.register_buffer("offset", torch.randn(4), persistent=False)
        self.tied = self.linear
        self.conv.weight.data = self.conv.weight.data.contiguous(memory_format=torch.channels_last)
        self.eval().requires_grad_(False)

    def blended(self, x: torch.Tensor) -> torch.Tensor:
        """What is computed from the one number alone could be taken for a constant."""
        return torch.sigmoid(self.mix) * x

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        batch, _, frames, height, width = sample.shape
        x = self.conv(sample.transpose(1, 2).flatten(0, 1)).reshape(batch, frames, -1, height, width)
        x = self.tied(torch.tanh(self.linear(x.permute(0, 1, 3, 4, 2)))) + self.offset
        x = self.blended(x)
        return x.permute(0, 4, 1, 2, 3) * strength.to(sample.dtype)[:, :, None, None, None]


def mixed_spec(spec: EngineSpec | None = None) -> EngineSpec:
    """The specification of `Mixed`'s engine, which names no weights."""
    found = spec or toy_spec()
    return EngineSpec(
        InductorBackend.network_of(found.network, OUTSIDE), found.profile, found.precision, found.rewrites
    )


def build(folder: Path, device: torch.device, spec: EngineSpec | None = None, make: MakeNetwork = Mixed) -> Plan:
    """An engine of the network in a store of its own."""
    request = BuildRequest(mixed_spec(spec), ToySource(make), InductorBackend(), device)
    return build_engine(request, EngineStore(folder), InProcess()).plan


def loaded(plan: Plan, device: torch.device, seed: int = 0) -> tuple[InductorRunner, Mixed]:
    """A runner of the engine over `Mixed` of that seed, and that network."""
    dtype = {"fp32": torch.float32, "fp16": torch.float16}[plan.manifest.spec.precision]
    network = Mixed(seed).to(device, dtype)
    runner = InductorRunner(plan, plan.manifest.spec, partial(lambda found: found, network), device)
    runner.load()
    return runner, network

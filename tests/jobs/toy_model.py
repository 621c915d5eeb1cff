"""A model of toy networks, so that policies are tested without an exporter or weights on disk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from i2v_tensorrt.engine_builder.spec import DimRange, NetworkSpec, ShapeProfile, TensorSpec
from i2v_tensorrt.pipeline.models.base import Component

from ..engine_builder.toys import LIMITS, ToyNetwork, ToySource, toy_network


def chunked(network: NetworkSpec) -> NetworkSpec:
    """The network with its batch called `chunk`, as a decoder has it."""

    def renamed(tensors: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(t, dims=tuple("chunk" if dim == "batch" else dim for dim in t.dims)) for t in tensors)

    ranges = {"chunk": DimRange(1, 8, 64), **network.limits.ranges}
    del ranges["batch"]
    return replace(
        network, inputs=renamed(network.inputs), outputs=renamed(network.outputs), limits=ShapeProfile(ranges)
    )


class ToyModel:
    """What an EngineSet asks of a model: a core, a decoder, and a conditioner that cannot be compiled."""

    engine_components = ("core", "vae_decoder")
    build_order = ("core", "vae_decoder")
    latent_factor = 8

    def __init__(self) -> None:
        self.loads: list[tuple[str, str]] = []
        networks = {
            "core": toy_network(limits=LIMITS),
            "vae_decoder": chunked(toy_network(component="vae_decoder")),
            "conditioner": toy_network(component="conditioner", exportable=False),
        }
        self.components = {name: Component(spec, self._loader(name)) for name, spec in networks.items()}

    def _loader(self, component: str) -> Any:
        def load(precision: str) -> torch.nn.Module:
            self.loads.append((component, precision))
            return ToyNetwork()

        return load

    def source(self, component: str, precision: str) -> ToySource:
        return ToySource()

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str) -> int:
        return 1000 * sizes["frames"]

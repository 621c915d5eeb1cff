"""A model of toy networks, so that policies are tested without an exporter or weights on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, NetworkSpec, TensorSpec
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.latent_space import LatentSpace
from i2v_tensorrt.pipeline.models.model_networks import Component
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from .toys import LIMITS, ToyBackend, ToyNetwork, ToySource, toy_network

MakeSet = Callable[..., EngineSet]
"""Makes an EngineSet; its keywords are a policy's."""
SIZES = {"batch": 2, "frames": 4, "latent_height": 8, "latent_width": 6}
ODD = {**SIZES, "latent_width": 7}
CHUNKED = {**SIZES, "chunk": 2}
INSTALL = "pip install toys"
BROKE = "The toy broke."


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
    denoisers = ("core",)
    build_order = ("core", "vae_decoder")
    title = "A toy"
    latent = LatentSpace()
    bf16_rewrites: ClassVar[frozenset[str]] = frozenset()
    instead_of_fp16: ClassVar[Mapping[str, str]] = {}
    block_lists: ClassVar[Mapping[str, Any]] = {}
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "core": ("doubled", "halved"),
        "vae_decoder": ("doubled",),
    }

    def __init__(self) -> None:
        self.loads: list[tuple[str, str]] = []
        self.sources: list[tuple[str, tuple[str, ...]]] = []
        networks = {
            "core": toy_network(limits=LIMITS),
            "vae_decoder": chunked(toy_network(component="vae_decoder")),
            "conditioner": toy_network(component="conditioner", exportable=False),
        }
        self.components = {name: Component(spec, self._loader(name)) for name, spec in networks.items()}

    def _loader(self, component: str) -> Any:
        def load(precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
            self.loads.append((component, precision))
            return ToyNetwork()

        return load

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        return ("doubled",) if (component, backend) == ("core", "rewriting toy") else ()

    def roundings(self, component: str, precision: str, backend: str) -> tuple[str, ...]:
        return ()

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> ToySource:
        self.sources.append((component, rewrites))
        return ToySource()

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        return 1000 * sizes["frames"]


def run(engines: EngineSet, sizes: dict[str, int] = SIZES, component: str = "core") -> str:
    """Runs the component, checks the result, and says which backend ran."""
    network = engines.model.components[component].spec
    inputs = example_inputs(EngineSpec(network, ShapeProfile(), "fp32"), sizes)
    found = engines.run(component, inputs)["prediction"]
    assert torch.allclose(found, ToyNetwork()(**inputs), rtol=0, atol=1e-6)
    return engines.describe(component).split(",")[0]


def breaking(toy: ToyBackend, words: str = BROKE, kind: type[BaseException] = EngineError) -> list[Path]:
    """Has every build of the toy fail; where those that were begun since lie."""
    tries: list[Path] = []

    def fail(folder: Path) -> None:
        tries.append(folder)
        raise kind(words)

    toy.while_building = fail
    return tries


def mend(toy: ToyBackend) -> None:
    """Has its builds succeed again."""
    toy.while_building = lambda folder: None


def built(toy: ToyBackend) -> list[str]:
    """The components that the toy has built."""
    return sorted(spec.network.component for spec in toy.builds_done)


def damage(store: EngineStore) -> list[str]:
    """Flips a bit in every engine's weights, and gives their keys."""
    plans = list(store.plans())
    for plan in plans:
        path = plan.folder / ToyBackend.FILE
        path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    return [plan.manifest.key for plan in plans]


def keys(engines: EngineSet) -> list[str]:
    """What is in the set's store."""
    return [plan.manifest.key for plan in engines.store.plans()]

"""Picture networks as `Engines` asks for networks: specifications with picture-like examples, and their sources."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch

from ...common.network_source import NetworkSource
from ...common.shapes import DimRange, ShapeProfile
from ...common.spec import NetworkSpec, Scope, TensorSpec
from ...pipeline.filters import rife
from ...pipeline.models.model_networks import Component
from ..engines.engine_set import Engines
from ..engines.networks import AnyNetworks, OtherNetworks

FEATURES, INTERPOLATION = "features", "interpolation"
MOST_AT_ONCE = 8
"""Pictures that an engine takes at once."""
BUSY_PIXELS = 8 << 20
"""Pixels of a call that keep any GPU busy: more at once would cost memory and time until the first frame alone."""
LARGEST = 8192
"""Pixels of a side that an engine takes."""
SHIFT = (6, -4)
"""Pixels by which the second picture of an example lies elsewhere than the first."""
BYTES_PER_PIXEL = {FEATURES: 64, INTERPOLATION: 300}
"""Scratch memory of a call for each pixel and byte of the precision: ComfyUI's own measure of RIFE."""


@dataclass(frozen=True)
class RifeNetworks(OtherNetworks):
    """The two networks of a file of RIFE's form. Holds no weights: its components load them."""

    engine_components: ClassVar[tuple[str, ...]] = (FEATURES, INTERPOLATION)
    build_order: ClassVar[tuple[str, ...]] = (INTERPOLATION, FEATURES)

    path: Path

    @cached_property
    def network(self) -> rife.Rife:
        """The file's network on the CPU; raises InputError for a file of another form."""
        from safetensors.torch import load_file

        return rife.open_rife(load_file(self.path))

    @property
    def align(self) -> int:
        """What height and width are multiples of."""
        return self.network.flow.align

    @cached_property
    def components(self) -> Mapping[str, Component]:
        sha = hashlib.sha256(self.path.read_bytes()).hexdigest()
        code = hashlib.sha256(Path(rife.__file__).read_bytes()).hexdigest()[:16]
        align = self.align
        channels = self.network.encode.cnn3.out_channels
        side = DimRange(align, max(512 // align, 1) * align, LARGEST // align * align, align)
        limits = ShapeProfile({"pictures": DimRange(1, 4, MOST_AT_ONCE), "height": side, "width": side})

        def component(name: str, inputs: tuple[TensorSpec, ...], output: TensorSpec) -> Component:
            def load(precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
                return rife.one_network(self.network, name, precision)

            config = f"{list(self.network.flow.scales)}"
            return Component(NetworkSpec("rife", name, config, sha, inputs, (output,), limits, code=code), load)

        return {
            FEATURES: component(FEATURES, (_picture("image", 3),), _picture("features", channels)),
            INTERPOLATION: component(
                INTERPOLATION,
                (
                    _picture("first", 3),
                    _picture("second", 3, SHIFT),
                    _picture("first_features", channels),
                    _picture("second_features", channels, SHIFT),
                    TensorSpec("time", ("pictures", 1, 1, 1), "float32", Scope.CLIP, span=(0.0, 1.0)),
                ),
                _picture("image", 3),
            ),
        }

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> NetworkSource:
        """Source from which another process loads a component's network."""
        arguments = {"path": str(self.path), "component": component, "precision": precision}
        return NetworkSource("pipeline.filters.rife", "load_network", arguments, self.path.stat().st_size)

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        pixels = sizes.get("pictures", 1) * sizes["height"] * sizes["width"]
        return BYTES_PER_PIXEL[component] * pixels * (4 if precision == "fp32" else 2)


def _picture(name: str, channels: int, scene: tuple[int, int] = (0, 0)) -> TensorSpec:
    return TensorSpec(name, ("pictures", channels, "height", "width"), scope=Scope.CLIP, scene=scene)


def fitting_batch(engines: Engines[AnyNetworks], component: str, sizes: Mapping[str, int]) -> int:
    """Number of a component's items of these sizes that the memory takes at once now, at least one."""
    spare = engines.memory_manager.spare_bytes()
    if spare is None:
        return MOST_AT_ONCE
    one = engines.model.scratch_bytes(component, sizes, engines.precision)
    return max(1, min(MOST_AT_ONCE, spare // max(one, 1)))


def exact_batch(engines: Engines[AnyNetworks], component: str, sizes: Mapping[str, int]) -> int:
    """Number of pictures [height, width] for which a component's engine is compiled, and with which it is called.

    It is a power of two that fits the memory and keeps the device busy, one on a CPU, so that few engines serve all
    states of the memory; where one is there for less, its number is taken.
    """
    busy = 1 if engines.device.type == "cpu" else max(BUSY_PIXELS // (sizes["height"] * sizes["width"]), 1)
    most = min(fitting_batch(engines, component, sizes), busy)
    batches = [2**power for power in reversed(range(most.bit_length()))]
    if not engines.catalog.can_build():
        return batches[0]
    there = (batch for batch in batches if engines.catalog.fitting(component, {**sizes, "pictures": batch}))
    return next(there, batches[0])

"""Upscaling over engines: a picture network of ComfyUI's as `Engines` asks for networks, on tiles of one size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ...common.network_source import NetworkSource
from ...common.shapes import DimRange, ShapeProfile
from ...common.spec import NetworkSpec, Scope, TensorSpec
from ...pipeline.decode import most_at_once
from ...pipeline.filters.spandrel_network import REWRITES, code, load_network
from ...pipeline.filters.upscaling import OVERLAP, TILE, Enlarge, Upscaling
from ...pipeline.models.model_networks import Component
from ..engines.engine_set import Engines
from ..engines.networks import OtherNetworks
from .networks import MOST_AT_ONCE, fitting_batch

UPSCALER = "upscaler"
SMALLEST_TILE = 64
"""Pixels of a tile's side; tiles are multiples of it."""
WIDEST = 64
"""Channels that the published networks hold at the enlarged size."""
BUSY_PIXELS = 1 << 20
"""Pixels of a call's tiles that keep any GPU busy: with fewer at once the first frames come sooner."""
BYTES_PER_PIXEL = 3 * 384
"""Scratch memory of a call for each pixel of a tile, step of scale and byte of the precision: ComfyUI's own measure."""


@dataclass(frozen=True)
class UpscalerNetworks(OtherNetworks):
    """The network of a file of tensors that spandrel knows, named by their digest, on tiles of `tile` pixels."""

    engine_components: ClassVar[tuple[str, ...]] = (UPSCALER,)
    build_order: ClassVar[tuple[str, ...]] = (UPSCALER,)
    known_rewrites: ClassVar[Mapping[str, tuple[str, ...]]] = {UPSCALER: REWRITES}
    rewriting_backends: ClassVar[frozenset[str]] = frozenset({"inductor"})

    path: Path
    sha256: str
    architecture: str
    scale: int
    tile: int = TILE

    @cached_property
    def components(self) -> Mapping[str, Component]:
        path, large = str(self.path), self.tile * self.scale

        def load(precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
            return load_network(path, precision, ",".join(rewrites))

        spec = NetworkSpec(
            "upscaler",
            UPSCALER,
            self.architecture,
            self.sha256,
            (TensorSpec("image", ("chunk", 3, self.tile, self.tile), scope=Scope.CLIP, scene=(0, 0)),),
            (TensorSpec("enlarged", ("chunk", 3, large, large)),),
            ShapeProfile({"chunk": DimRange(1, 4, MOST_AT_ONCE)}),
            code=code(),
        )
        return {UPSCALER: Component(spec, load)}

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        return REWRITES if backend in self.rewriting_backends else ()

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> NetworkSource:
        """Source from which another process loads the network."""
        arguments = {"path": str(self.path), "precision": precision, "rewrites": ",".join(rewrites)}
        return NetworkSource("pipeline.filters.spandrel_network", "load_network", arguments, self.path.stat().st_size)

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        pixels = sizes.get("chunk", 1) * self.tile**2 * max(self.scale, 1)
        return BYTES_PER_PIXEL * pixels * (4 if precision == "fp32" else 2)


def fitting_tile(tile: int, height: int, width: int) -> int:
    """The tile's side, or less where the frame is smaller: what is beyond a frame costs as much as what is in it."""
    return min(tile, -(-max(height, width) // SMALLEST_TILE) * SMALLEST_TILE)


def enlarge_by(engines: Engines[UpscalerNetworks]) -> Enlarge:
    """The network of an `Upscaling`, by engines."""

    def enlarge(tiles: Tensor) -> Tensor:
        return engines.run(UPSCALER, {"image": tiles})["enlarged"]

    return enlarge


def upscaling(
    engines: Engines[UpscalerNetworks],
    *,
    size: tuple[int, int] | None = None,
    on_frame: Callable[[int], None] = lambda done: None,
) -> Upscaling:
    """The filter; builds a missing engine first, where the policy is to. `size` is height and width, in pixels."""
    model, side = engines.model, engines.model.tile * engines.model.scale
    busy = max(BUSY_PIXELS // model.tile**2, 1)
    batch = min(fitting_batch(engines, UPSCALER, {}), most_at_once(side, side, WIDEST), busy)
    engines.prepare({"chunk": batch})
    overlap = min(OVERLAP, model.tile // 4)
    return Upscaling(
        enlarge_by(engines),
        model.scale,
        device=engines.device,
        batch=batch,
        tile=model.tile,
        overlap=overlap,
        size=size,
        on_frame=on_frame,
    )

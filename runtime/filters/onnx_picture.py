"""An ONNX file's picture network as `Engines` asks for networks, and whole clips through it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from ...common.errors import InputError
from ...common.network_source import NetworkSource
from ...common.shapes import DimRange, ShapeProfile
from ...common.spec import NetworkSpec, Scope, TensorSpec
from ...engine_builder.backends.eager import EagerBackend
from ...engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from ...engine_builder.backends.registry import AUTO, BACKENDS
from ...engine_builder.backends.tensorrt.backend import TensorRTBackend
from ...pipeline.models.model_networks import Component
from ...pipeline.pictures.contract import BYTE, Contract, More, contract_to_dict
from ...pipeline.pictures.network import code, load_network
from ...pipeline.pictures.picture_filter import PictureFilter, Wishes
from ..engines.engine_set import Engines
from ..engines.networks import OtherNetworks
from .networks import LARGEST, MOST_AT_ONCE, fitting_batch

NETWORK, EAGER = "picture_network", EagerBackend.name
COMPILED_BY = (TensorRTBackend.name, OnnxRuntimeBackend.name)
"""Backends that take an ONNX graph, the fastest first."""


@dataclass(frozen=True)
class OnnxPictureNetworks(OtherNetworks):
    """The network of an ONNX file of that digest, under its contract."""

    engine_components: ClassVar[tuple[str, ...]] = (NETWORK,)
    build_order: ClassVar[tuple[str, ...]] = (NETWORK,)

    path: Path
    sha256: str
    contract: Contract

    @cached_property
    def components(self) -> Mapping[str, Component]:
        path, sha256, contract = str(self.path), self.sha256, json.dumps(contract_to_dict(self.contract))

        def load(precision: str, rewrites: tuple[str, ...] = ()) -> torch.nn.Module:
            return load_network(path, sha256, contract)

        config = hashlib.sha256(contract.encode()).hexdigest()
        own = self._picture(self.contract.picture, self.contract.picture_dims, self.contract.dtype)
        inputs = (own, *map(self._more, self.contract.more))
        output = TensorSpec(self.contract.output, self.contract.output_dims, self.contract.out_dtype)
        spec = NetworkSpec("onnx", NETWORK, config, sha256, inputs, (output,), self._limits(), code=code())
        return {NETWORK: Component(spec, load)}

    def _picture(self, name: str, dims: tuple[str | int, ...], dtype: str) -> TensorSpec:
        spec = TensorSpec(name, dims, dtype, Scope.CLIP)
        return replace(spec, span=(0.0, 255.0)) if self.contract.range_in == BYTE else replace(spec, scene=(0, 0))

    def _more(self, more: More) -> TensorSpec:
        if more.is_picture:
            return self._picture(more.name, self.contract.more_dims(more), more.dtype)
        span = (0.0, 1.0) if more.is_number else None
        return TensorSpec(more.name, self.contract.more_dims(more), more.dtype, Scope.CLIP, span=span)

    def _limits(self) -> ShapeProfile:
        contract, ranges = self.contract, {}
        if contract.batches:
            ranges["chunk"] = DimRange(1, 4, MOST_AT_ONCE)
        if contract.size is None:
            per_row = contract.factor.denominator
            step = contract.step // per_row
            side = DimRange(step, max(512 // contract.step, 1) * step, LARGEST // contract.step * step, step)
            ranges |= {"rows": side, "columns": side}
        return ShapeProfile(ranges)

    def source(self, component: str, precision: str, rewrites: tuple[str, ...] = (), blocks: int = 0) -> NetworkSource:
        """Source from which another process loads the network."""
        contract = json.dumps(contract_to_dict(self.contract))
        arguments = {"path": str(self.path), "sha256": self.sha256, "contract": contract}
        return NetworkSource("pipeline.pictures.network", "load_network", arguments, self.path.stat().st_size)

    def scratch_bytes(self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager") -> int:
        """Of the device, which eager calls leave alone: they are the CPU's."""
        if backend == EAGER:
            return 0
        height, width = self.contract.size or (
            side * self.contract.factor.denominator for side in (sizes["rows"], sizes["columns"])
        )
        return sizes.get("chunk", 1) * height * width * self.contract.bytes_per_pixel

    def sizes(self, height: int, width: int) -> dict[str, int]:
        """The sizes of a call on frames of that height and width in pixels, but for their number."""
        if self.contract.size is not None:
            return {}
        step, per_row = self.contract.step, self.contract.factor.denominator
        return {"rows": (height + -height % step) // per_row, "columns": (width + -width % step) // per_row}


def backend_for(wanted: str, device: torch.device) -> str:
    """The backend of an ONNX file's engines: `auto` is the fastest that serves the GPU, and on a CPU the file itself.

    Raises InputError for a backend that takes no ONNX graph.
    """
    if wanted == AUTO:
        serving = (name for name in COMPILED_BY if BACKENDS[name].availability(device).ok)
        return next(serving, EAGER) if device.type == "cuda" else EAGER
    if wanted in BACKENDS and wanted not in (*COMPILED_BY, EAGER):
        raise InputError(f"Expected one of {', '.join(COMPILED_BY)} or eager for an ONNX file, found {wanted}.")
    return wanted


def picture_filter(engines: Engines[OnnxPictureNetworks], height: int, width: int, wishes: Wishes) -> PictureFilter:
    """The filter for frames of height x width (pixels); builds a missing engine first, where the policy is to."""
    model = engines.model
    sizes = model.sizes(height, width)
    batch = fitting_batch(engines, NETWORK, sizes) if model.contract.batches else 1
    engines.prepare({**sizes, "chunk": batch} if model.contract.batches else sizes)

    def network(inputs: Mapping[str, Tensor]) -> Tensor:
        return engines.run(NETWORK, inputs)[model.contract.output]

    return PictureFilter(network, model.contract, device=engines.device, batch=batch, wishes=wishes)


def served_by(engines: Engines[OnnxPictureNetworks]) -> str:
    """What ran the network, in words for the user."""
    last = engines.runners.last_backends([NETWORK]).get(NETWORK)
    if last in (None, EAGER):
        return f"ONNX Runtime, {engines.model.contract.precision} on cpu"
    return engines.describe(NETWORK)

"""One of a core network's repeated blocks, whose weights are inputs of its engine: one engine serves all of them.

The child that builds makes the whole network without memory, on the device `meta`, and takes a block out of it; the
weights that it tries the engine with are random. So nothing of the model but its description leaves this process,
and the engine does not depend on how the weights are stored, moved or patched.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ...common.digest import canonical_json, digest
from ...common.errors import EngineError
from ...common.network_source import NetworkSource
from ...common.shapes import ShapeProfile
from ...common.spec import NetworkSpec
from ...runtime.external.fp8_linear import Fp8Linear
from ...runtime.external.network_call import StatelessNetwork
from .network import OPTIONS, code_sha256, comfy_operations, comfy_root, constructed, described, fresh_options

NO_WEIGHTS = digest("none")


class BlockNetwork:
    """The block at `path` of a model's network, as a stand-in for all blocks of its kind."""

    weights: object = None
    """The weights are inputs: an engine that was compared over one block's serves all others'."""

    def __init__(self, model: Any, path: str, dtype: torch.dtype, in_fp8: Mapping[str, bool]) -> None:
        """Raises InputError for a network that another process could not make.

        `dtype` is the one computed in; `in_fp8` names the layers that multiply in fp8, and says whether each has a
        scale for its input.
        """
        self._model, self._dtype = model, dtype
        self._block = model.diffusion_model.get_submodule(path)
        layers = canonical_json(dict(in_fp8))
        name = str(dtype).removeprefix("torch.")
        self._description = {**described(model), "path": path, "dtype": name, "in_fp8": layers}

    @cached_property
    def identity(self) -> NetworkSpec:
        """The block without its tensors."""
        return NetworkSpec(
            family=type(self._model).__name__,
            component=type(self._block).__name__,
            config_sha256=digest(self._description),
            weights_sha256="",
            inputs=(),
            outputs=(),
            limits=ShapeProfile(),
            code=code_sha256(),
        )

    def weights_sha256(self) -> str:
        """The same for all: an engine of any backend is given the weights."""
        return NO_WEIGHTS

    def called(self, tree: str) -> torch.nn.Module:
        """The block without weights: what needs it beside its engine is in the process that builds."""
        return StatelessNetwork(self._block, tree, options_for(self._block))

    def source(self, tree: str, device: torch.device, *, weights: bool) -> NetworkSource:
        """Source of the block for the process that builds; `weights` changes nothing."""
        place = {"tree": tree, "device": str(device), "root": str(comfy_root())}
        size_bytes = sum(parameter.numel() * self._dtype.itemsize for parameter in self._block.parameters())
        return NetworkSource("nodes.host.block_network", "rebuild", {**self._description, **place}, size_bytes)


def options_for(block: torch.nn.Module) -> Any:
    """Function that gives the arguments which a block is given anew at each call, for it may write into them."""
    return fresh_options if OPTIONS in inspect.signature(block.forward).parameters else dict


def rebuild(
    module: str, name: str, config: str, path: str, dtype: str, in_fp8: str, tree: str, device: str, root: str
) -> StatelessNetwork:
    """The block that `BlockNetwork.source` describes, in the process that builds an engine.

    Raises EngineError for a block with tensors beside its weights, which nothing here would fill.
    """
    layers = comfy_operations(Path(root), torch.device(device)).manual_cast
    precision = getattr(torch, dtype)
    network = constructed(module, name, config, layers, device="meta", dtype=precision)
    block = network.get_submodule(path)
    for layer, has_input_scale in json.loads(in_fp8).items():
        _replace(block, layer, input_scale=has_input_scale, dtype=precision)
    for name, _ in block.named_buffers():
        raise EngineError(f"Expected a block whose tensors are weights, found the buffer {name} in {path}.")
    return StatelessNetwork(block, tree, options_for(block))


def _replace(block: torch.nn.Module, path: str, **settings: Any) -> None:
    """Puts a layer that multiplies in fp8 in the place of a linear layer."""
    outer, _, last = path.rpartition(".")
    linear: Any = block.get_submodule(path)
    fp8 = Fp8Linear(linear.in_features, linear.out_features, bias=linear.bias is not None, **settings)
    setattr(block.get_submodule(outer), last, fp8)

"""A network of ComfyUI's core, described so that another process can make it again, and made again there.

The child that builds imports ComfyUI's own `comfy` package from its folder and makes the network from the class and
the configuration that the model was loaded with. Nothing of the network but its description leaves this process:
no exported program, which would keep the host busy for minutes and is stored by pickling, and no weights, for an
engine that takes them from the host. The child tries such an engine over random weights of the same shapes; the host
compares it over the real ones, on the first call. Only an engine that holds its weights gets them, in a file.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
import sys
import tempfile
from collections.abc import Mapping
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch

from ...common.digest import canonical_json, digest
from ...common.errors import EngineError, InputError, StorageError
from ...common.network_source import NetworkSource
from ...common.shapes import ShapeProfile
from ...common.spec import NetworkSpec
from ...engine_builder.backends.network_tensors import Layout, layout_of, tensors_of
from ...runtime.external.network_call import SharedWeightsNetwork, WrappedNetwork

METHOD = "_forward"
"""The method of a network that ComfyUI lets others wrap."""
OPTIONS = "transformer_options"
OPERATIONS = ("manual_cast", "disable_weight_init")
"""The sets of layers in `comfy.ops` whose weights are plain tensors."""
WEIGHTS = "weights.safetensors"


def fresh_options() -> dict[str, Any]:
    """The arguments that every call is given anew, for a network writes into them."""
    return {OPTIONS: {}}


class CoreNetwork:
    """The network of one of ComfyUI's models; `weights` is the patcher's name for their present state."""

    def __init__(self, model: Any, scratch: Path) -> None:
        self.network: torch.nn.Module = model.diffusion_model
        self.weights: object = None
        self._model, self._scratch = model, scratch
        self._digests: dict[object, str] = {}
        self._dump: tempfile.TemporaryDirectory[str] | None = None

    def check(self) -> None:
        """Raises InputError for a network that another process could not make."""
        self._description  # noqa: B018 - kept once it is known

    @cached_property
    def identity(self) -> NetworkSpec:
        """The network without its tensors."""
        kind = type(self.network)
        return NetworkSpec(
            family=type(self._model).__name__,
            component=kind.__name__,
            config_sha256=digest({**self._description, "layout": layout_of(self.network)}),
            weights_sha256="",
            inputs=(),
            outputs=(),
            limits=ShapeProfile(),
            code=code_sha256(),
        )

    @cached_property
    def _description(self) -> dict[str, str]:
        return {**described(self._model), "operations": _operations(self.network)}

    def weights_sha256(self) -> str:
        """Taken once for each state of the weights."""
        if self.weights not in self._digests:
            sha = hashlib.sha256()
            for name, tensor in sorted(tensors_of(self.network).items()):
                sha.update(f"{name} {tensor.dtype} {list(tensor.shape)} ".encode())
                sha.update(_bytes(tensor))
            self._digests = {self.weights: sha.hexdigest()}
        return self._digests[self.weights]

    def called(self, tree: str) -> torch.nn.Module:
        """The network over the weights that ComfyUI has loaded, on any device."""
        return SharedWeightsNetwork(self.network, METHOD, tree, fresh_options)

    def source(self, tree: str, device: torch.device, *, weights: bool) -> NetworkSource:
        """Raises StorageError when the weights that are asked for cannot be written."""
        size_bytes = sum(tensor.nbytes for tensor in tensors_of(self.network).values())
        arguments = {
            **self._description,
            "layout": canonical_json(layout_of(self.network)),
            "tree": tree,
            "device": str(device),
            "root": str(comfy_root()),
            "weights": str(self._dumped()) if weights else "",
        }
        in_memory = weights or device.type == "cpu"
        return NetworkSource("nodes.host.network", "rebuild", arguments, size_bytes if in_memory else 0)

    def clean(self) -> None:
        """Removes the files written for a build."""
        if self._dump is not None:
            self._dump.cleanup()
            self._dump = None

    def _dumped(self) -> Path:
        from safetensors.torch import save_file

        self.clean()
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            self._dump = tempfile.TemporaryDirectory(prefix="weights_", dir=self._scratch, ignore_cleanup_errors=True)
            path = Path(self._dump.name) / WEIGHTS
            save_file({n: x.detach().cpu().clone().contiguous() for n, x in tensors_of(self.network).items()}, path)
        except Exception as error:  # safetensors' own exceptions share no base with OSError
            self.clean()
            raise StorageError(f"The weights cannot be written to {self._scratch}: {error}.") from error
        return path


def rebuild(
    module: str, name: str, config: str, operations: str, layout: str, tree: str, device: str, root: str, weights: str
) -> WrappedNetwork:
    """The network that `CoreNetwork.source` describes, in the process that builds an engine.

    Raises EngineError when ComfyUI here makes another one.
    """
    target = torch.device(device)
    made = constructed(module, name, config, getattr(comfy_operations(Path(root), target), operations))
    wanted: Layout = json.loads(layout)
    if set(wanted) != set(tensors_of(made)):
        strange = sorted(set(wanted) ^ set(tensors_of(made)))
        raise EngineError(f"ComfyUI makes another {name} from its configuration: {strange[0]} is only in one of them.")
    if weights:
        _assign_from(made, Path(weights), wanted)
        return WrappedNetwork(made, METHOD, tree, fresh_options)
    _assign_random(made, wanted, target)
    return SharedWeightsNetwork(made, METHOD, tree, fresh_options)  # it is where it shall stay


def described(model: Any) -> dict[str, str]:
    """Class and configuration of a ComfyUI model's network, for `constructed`.

    Raises InputError for one that is not of ComfyUI's core.
    """
    kind = type(model.diffusion_model)
    if not kind.__module__.startswith("comfy."):
        raise InputError(f"Expected a network of ComfyUI's core, found {kind.__module__}.{kind.__name__}.")
    config = canonical_json(_packed(dict(model.model_config.unet_config)))
    return {"module": kind.__module__, "name": kind.__qualname__, "config": config}


def constructed(module: str, name: str, config: str, operations: Any, **changes: Any) -> torch.nn.Module:
    """A network of that class and configuration, on the CPU and made of those layers unless `changes` say otherwise."""
    kind: Any = importlib.import_module(module)
    for part in name.split("."):
        kind = getattr(kind, part)
    made = kind(**{**_unpacked(json.loads(config)), "device": "cpu", "operations": operations, **changes})
    return made.requires_grad_(False).eval()


def comfy_operations(root: Path, device: torch.device) -> Any:
    """`comfy.ops` of the ComfyUI in that folder, set so that its operations can be exported."""
    sys.path.append(str(root))
    arguments = importlib.import_module("comfy.cli_args").args
    arguments.cpu = device.type == "cpu"
    arguments.use_pytorch_cross_attention = True
    # In training all its computation is PyTorch; else it may call kernels that no exporter knows.
    memory: Any = importlib.import_module("comfy.model_management")
    memory.in_training = True
    return importlib.import_module("comfy.ops")


def _assign_random(network: torch.nn.Module, layout: Layout, device: torch.device) -> None:
    """Sets random weights that keep the size of activations, so that a trial run stays finite."""
    generator = torch.Generator(device).manual_seed(0)
    for name in dict(network.named_parameters()):
        shape, stride, dtype = layout[name]
        values = torch.randn(shape, generator=generator, device=device)
        if len(shape) > 1:
            values /= math.sqrt(max(math.prod(shape[1:]), 1))
        else:
            values = 0.02 * values if name.endswith("bias") else 1 + 0.1 * values
        _assign(network, name, _laid_out(values, stride, dtype))
    for name, buffer in list(network.named_buffers()):
        _assign(network, name, _laid_out(buffer.to(device), *layout[name][1:]))


def _assign_from(network: torch.nn.Module, path: Path, layout: Layout) -> None:
    from safetensors.torch import load_file

    for name, values in load_file(path).items():
        _assign(network, name, _laid_out(values, *layout[name][1:]))


def _laid_out(values: torch.Tensor, stride: list[int], dtype: str) -> torch.Tensor:
    kind = getattr(torch, dtype.removeprefix("torch."))
    return torch.empty_strided(values.shape, stride, dtype=kind, device=values.device).copy_(values)


def _assign(network: torch.nn.Module, name: str, values: torch.Tensor) -> None:
    path, _, last = name.rpartition(".")
    owner = network.get_submodule(path)
    if last in owner._buffers:
        owner._buffers[last] = values
    else:
        owner._parameters[last] = torch.nn.Parameter(values, requires_grad=False)


def _operations(network: torch.nn.Module) -> str:
    """The set of layers that the network is made of; raises InputError for layers whose weights are not plain."""
    found: set[str] = set()
    for layer in network.modules():
        kind = type(layer)
        if kind.__module__ == "comfy.ops":
            found.add(kind.__qualname__.partition(".")[0])
        elif not kind.__module__.startswith(("comfy.", "torch.")):
            raise InputError(f"Expected layers of ComfyUI's core, found {kind.__module__}.{kind.__qualname__}.")
    strange = sorted(found - set(OPERATIONS))
    if strange or any(type(x.data) is not torch.Tensor for x in network.parameters()):
        raise InputError(f"Expected weights that are not quantized, found layers of {', '.join(strange) or 'others'}.")
    return next(name for name in OPERATIONS if name in found or name == OPERATIONS[-1])


def _packed(value: Any) -> Any:
    """A configuration's value as JSON; raises InputError for one that JSON cannot hold."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, list | tuple):
        return {type(value).__name__: [_packed(each) for each in value]}
    if isinstance(value, Mapping):
        return {"dict": {str(key): _packed(each) for key, each in value.items()}}
    raise InputError(f"Expected a configuration of plain data, found a {type(value).__name__}.")


def _unpacked(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "dict":
        return {key: _unpacked(each) for key, each in content.items()}
    made = [_unpacked(each) for each in content]
    return tuple(made) if kind == "tuple" else made


def comfy_root() -> Path:
    """The folder of this ComfyUI."""
    return Path(importlib.import_module("comfy.ops").__file__ or "").resolve().parent.parent


@lru_cache(maxsize=1)
def code_sha256() -> str:
    """Digest of the code that ComfyUI's networks are made of."""
    folder, sha = comfy_root() / "comfy", hashlib.sha256()
    for path in [folder / "ops.py", *sorted((folder / "ldm").rglob("*.py"), key=Path.as_posix)]:
        sha.update(path.relative_to(folder).as_posix().encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()

"""A compiled network as it is called: one package, or several parts that are wired together."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ....common.errors import EngineError
from ....common.out_of_memory import is_out_of_memory, is_short
from ....common.spec import NetworkSpec
from ..base import in_a_line

if TYPE_CHECKING:
    import torch

    from ...store.store import Plan

FILE_NAME = "network.pt2"
"""The whole network, or its first part."""
BLOCK_FILE_NAME = "block.pt2"
"""One of a network's equal blocks, as its whole engine."""
WIRES = "wires"
"""The entry of a package's metadata with the tensors that the package reads and returns."""
CALL_FAILED = "API call failed"
"""Message of compiled code for an operator that raised any error."""
ALIGNMENT = 64
"""Bytes to whose multiples compiled code wants an input's address."""


def file_name(part: int) -> str:
    """The file of a part of a network, whose first is 0."""
    return FILE_NAME if part == 0 else f"network.{part}.pt2"


@dataclass(frozen=True)
class Wires:
    """Tensors that a part reads and returns, by name and in order; `strides` are the expected strides of each input.

    Strides of None stand for contiguous tensors of any shape: a network in one piece may have many.
    """

    reads: tuple[str, ...]
    strides: tuple[tuple[int, ...] | None, ...]
    returns: tuple[str, ...]
    results: tuple[str, ...]
    """The whole network's outputs, in order."""
    count: int
    """Number of parts."""


def wires_text(wires: Wires) -> str:
    """The wires as an entry of a package's metadata."""
    return json.dumps(asdict(wires))


def wires_of(metadata: Mapping[str, str], network: NetworkSpec) -> Wires:
    """The wires in a package's metadata; those of the network in one piece for an engine of an older version."""
    if WIRES not in metadata:
        return whole_wires(network)
    data = json.loads(metadata[WIRES])
    names = {key: tuple(data[key]) for key in ("reads", "returns", "results")}
    strides = tuple(None if each is None else tuple(each) for each in data["strides"])
    return Wires(**names, strides=strides, count=data["count"])


def whole_wires(network: NetworkSpec) -> Wires:
    """Wires of a network in one piece, with its tensors in order."""
    inputs, outputs = (tuple(each.name for each in tensors) for tensors in (network.inputs, network.outputs))
    return Wires(inputs, (None,) * len(inputs), outputs, outputs, 1)


class Package:
    """A compiled network, or a part of one, as PyTorch's loader has it.

    `torch.export` wraps the loader too, takes seconds to import and parses the call's structure at each call.
    """

    def __init__(self, path: Path, device_index: int) -> None:
        """Loads the file onto the device of that number, -1 for the CPU; PyTorch's errors pass through."""
        aoti: Any = import_module("torch._C._aoti")
        self._loader = aoti.AOTIModelPackageLoader(str(path), "model", True, 1, device_index)

    def __call__(self, values: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        return self._loader.boxed_run(list(values))

    def get_metadata(self) -> dict[str, str]:
        """Metadata that were stored beside the code when it was compiled."""
        return self._loader.get_metadata()

    def get_constant_fqns(self) -> list[str]:
        """The names of the weights that the code uses."""
        return self._loader.get_constant_fqns()

    def load_constants(self, constants: Mapping[str, torch.Tensor]) -> None:
        """Binds the code to these weights in place; the caller keeps the weights alive."""
        use_inactive, check_full_update, user_managed = False, True, True
        self._loader.load_constants(dict(constants), use_inactive, check_full_update, user_managed)


class Parts:
    """A compiled network behind one interface, in one or more parts."""

    def __init__(self, packages: Sequence[Package], network: NetworkSpec) -> None:
        """Takes the network's parts in their order."""
        self._packages = packages
        self._wires = wires = [wires_of(package.get_metadata(), network) for package in packages]
        last = {name: at for at, each in enumerate(wires) for name in each.reads}
        self._done = [
            [name for name in {*each.reads, *each.returns} - {*each.results} if last.get(name, at) <= at]
            for at, each in enumerate(wires)
        ]

    def __call__(self, **inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        values = dict(inputs)
        for package, wires, done in zip(self._packages, self._wires, self._done, strict=True):
            given = zip(wires.reads, wires.strides, strict=True)
            found = package([ready(values[name], strides) for name, strides in given])
            values.update(zip(wires.returns, found, strict=True))
            for name in done:
                del values[name]
        return tuple(values[name] for name in self._wires[-1].results)

    def get_metadata(self) -> dict[str, str]:
        """Metadata of the first part, which holds the layout of all parts' weights."""
        return self._packages[0].get_metadata()

    def get_constant_fqns(self) -> list[str]:
        """The names of all weights that any part uses."""
        return list(dict.fromkeys(name for package in self._packages for name in package.get_constant_fqns()))

    def load_constants(self, constants: Mapping[str, torch.Tensor]) -> None:
        """Gives each part the weights that it uses."""
        for package in self._packages:
            package.load_constants({name: constants[name] for name in package.get_constant_fqns()})


def open_parts(plan: Plan, network: NetworkSpec, device: torch.device) -> Parts:
    """An engine's code on a device, in one or more parts. Raises EngineError when PyTorch cannot load it."""
    first = _open_file(plan, FILE_NAME, network, device)
    others = (file_name(part) for part in range(1, wires_of(first.get_metadata(), network).count))
    return Parts([first, *(_open_file(plan, name, network, device) for name in others)], network)


def refused(act: str, network: NetworkSpec, error: Exception) -> EngineError:
    """PyTorch's reason why it cannot `load` or `run` an engine, as one of ours."""
    return EngineError(f"Inductor cannot {act} the {network.component} engine: {in_a_line(error)}.")


def open_block(plan: Plan, network: NetworkSpec, device: torch.device) -> Package:
    """The code of one of a network's blocks. Raises EngineError when PyTorch cannot load it."""
    return _open_file(plan, BLOCK_FILE_NAME, network, device)


def run_package(
    call: Callable[[], Sequence[torch.Tensor]], network: NetworkSpec, device: torch.device, scratch_bytes: int
) -> Sequence[torch.Tensor]:
    """The outputs of compiled code, which is expected to take so much memory beside its inputs.

    Raises OutOfMemoryError and EngineError: for a failed call the code's own message names no reason.
    """
    import torch

    try:
        return call()
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if is_out_of_memory(error) or (CALL_FAILED in str(error) and is_short(device, scratch_bytes)):
            raise torch.OutOfMemoryError(f"CUDA out of memory in {network.component}.") from error
        raise refused("run", network, error) from error


def _open_file(plan: Plan, name: str, network: NetworkSpec, device: torch.device) -> Package:
    """A package, from a private copy of the very bytes that were checked."""
    import torch

    data = plan.read(name)
    index = (device.index or 0) if device.type == "cuda" else -1
    # Windows keeps the file of a loaded library open.
    with tempfile.TemporaryDirectory(prefix="i2v-engine-", ignore_cleanup_errors=True) as folder:
        path = Path(folder) / name
        path.write_bytes(data)
        try:
            # aoti_load_package would first compile probes for this CPU's instructions, for half a minute
            # in a new process; the engine's target names them.
            return Package(path, index)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # PyTorch raises bare ones
            raise refused("load", network, error) from error


def lies_ready(tensor: torch.Tensor, strides: Sequence[int]) -> bool:
    """Whether compiled code, which does not check it, can read the tensor where it is."""
    return tensor.stride() == tuple(strides) and tensor.data_ptr() % ALIGNMENT == 0


def lay_out(tensor: torch.Tensor, stride: Sequence[int]) -> None:
    """Gives a parameter the strides, in place, so that all who share it go on sharing it."""
    import torch

    values = tensor.data
    tensor.data = torch.empty_strided(values.shape, stride, dtype=values.dtype, device=values.device).copy_(values)


def ready(tensor: torch.Tensor, strides: Sequence[int] | None) -> torch.Tensor:
    """The tensor as compiled code reads it; strides of None stand for contiguous ones."""
    import torch

    if strides is None:
        tensor = tensor.contiguous()
        strides = tensor.stride()
    if lies_ready(tensor, strides):
        return tensor
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)

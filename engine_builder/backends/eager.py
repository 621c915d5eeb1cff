"""Eager PyTorch: the reference that every engine is measured against, and the way out without one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ...common.errors import EngineError
from ...common.spec import EngineSpec, Target
from .base import Availability, Backend, LoadNetwork, Report, Runner
from .host_weights import LazyNetwork, Place, are_on, places, tensors, to_device

if TYPE_CHECKING:
    import torch

    from ..store.store import Plan


class EagerRunner(LazyNetwork, Runner):
    """The network itself; its weights wait in host memory while it is not loaded."""

    backend: ClassVar[str] = "eager"

    def __init__(self, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> None:
        super().__init__(spec, device)
        self._source = network
        self._places: tuple[Place, ...] | None = None

    @property
    def is_loaded(self) -> bool:
        """True when every weight is on the device: other runners may share some of the weights and have moved them."""
        return self._places is not None and are_on(self._places, self.device)

    @property
    def memory_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in tensors(self._module))

    def load(self) -> None:
        to_device(self._module, self.device)
        self._places = places(self._module)

    def unload(self) -> None:
        self._leave(self.device)
        if self._network is None:
            self._places = None

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        import torch

        with torch.inference_mode():
            found = self._module(**inputs)
        outputs = found if isinstance(found, tuple) else (found,)
        return {tensor.name: value for tensor, value in zip(self.spec.network.outputs, outputs, strict=True)}


class EagerBackend(Backend):
    """Runs the network as it is: nothing to build, any shape the network can take."""

    name: ClassVar[str] = "eager"
    builds: ClassVar[bool] = False

    def availability(self, device: torch.device) -> Availability:
        return Availability(True, "PyTorch is always there.")

    def target(self, device: torch.device) -> Target:
        import torch

        return Target(self.name, torch.__version__, device.type, device.type)

    def build(self, network: torch.nn.Module, spec: EngineSpec, folder: Path, report: Report) -> dict[str, str]:
        raise EngineError("Eager PyTorch has nothing to build.")

    def load(self, plan: Plan | None, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> Runner:
        return EagerRunner(spec, network, device)

"""ONNX Runtime: compiled graphs on every CPU, and on CUDA where the user has onnxruntime-gpu."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ...common.device import cuda_arch
from ...common.errors import BackendUnavailableError, EngineError
from ...common.out_of_memory import is_short, says_out_of_memory
from ...common.spec import EngineSpec, Target
from ..graph.onnx_export import FILE_NAME, empty_tensors, export_onnx, exporter_version
from .base import INSIDE, OUTSIDE, Availability, Backend, LoadNetwork, Report, Runner, import_fault
from .engine_weights import EngineWeights

if TYPE_CHECKING:
    import torch

    from ..store.store import Plan

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_CUDA_OPTIONS = {
    "use_tf32": "0",  # its rounding would not pass the comparison in fp32
    "cudnn_conv_algo_search": "HEURISTIC",  # EXHAUSTIVE, the default, tries all of them at every new shape
    "arena_extend_strategy": "kSameAsRequested",  # by default the arena doubles, and never shrinks
}
_SESSION_ERROR_LEVEL = 3


class OnnxRuntimeRunner(Runner):
    """An ONNX Runtime session over a plan's graph; inputs, weights among them, and outputs are not copied."""

    backend: ClassVar[str] = "onnxruntime"

    def __init__(self, plan: Plan, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> None:
        super().__init__(spec, device)
        self._plan = plan
        self._weights = EngineWeights(plan, network, device)
        self._session: Any = None
        self._binding: Any = None

    @property
    def is_loaded(self) -> bool:
        return self._session is not None and self._weights.are_bound

    @property
    def memory_bytes(self) -> int:
        return self._plan.manifest.size_bytes + self._weights.memory_bytes

    def load(self) -> None:
        if self.is_loaded:
            return
        if self._session is None:
            self._session = self._opened()
        self._binding = self._session.io_binding()
        self._weights.bind()
        for name, tensor in self._weights.inputs.items():
            self._binding.bind_input(name, **_placement(tensor), buffer_ptr=tensor.data_ptr())

    def _opened(self) -> Any:
        import onnxruntime

        provider = _provider(self.device)
        self._plan.verify()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SESSION_ERROR_LEVEL
        path = str(self._plan.folder / FILE_NAME)
        try:  # by default a provider that fails is replaced by the CPU's, with a line on the console
            session = onnxruntime.InferenceSession(path, options, providers=[provider], enable_fallback=False)
        except Exception as error:  # onnxruntime's own exceptions share no public base
            raise self._refused("load", error) from error
        if provider[0] not in session.get_providers():
            raise EngineError(
                f"ONNX Runtime cannot load the {self.spec.network.component} engine: its {provider[0]} does not start, "
                "for it needs another CUDA or cuDNN than PyTorch brings."
            )
        return session

    def unload(self) -> None:
        self._session = self._binding = None
        self._weights.release()

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        binding = self._binding
        kept = {name: tensor.contiguous() for name, tensor in inputs.items()}
        for name, tensor in kept.items():
            binding.bind_input(name, **_placement(tensor), buffer_ptr=tensor.data_ptr())
        outputs = self._empty_outputs(kept)
        for name, tensor in outputs.items():
            binding.bind_output(name, **_placement(tensor), buffer_ptr=tensor.data_ptr())
        self._synchronize()  # PyTorch's stream must have written the inputs before the session reads them
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise self._refused("run", error) from error
        binding.synchronize_outputs()
        binding.clear_binding_outputs()
        return outputs

    def _refused(self, act: str, error: Exception) -> Exception:
        """Exception for an error of the session: PyTorch's or Python's own where memory ran out."""
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        if self._ran_out(reason):
            if self.device.type == "cuda":
                import torch

                return torch.cuda.OutOfMemoryError(f"ONNX Runtime cannot {act}: {reason}.")
            if act == "run":  # fewer at once may do; an engine that cannot be loaded has eager PyTorch behind it
                return MemoryError(f"ONNX Runtime cannot run the {self.spec.network.component} engine: {reason}.")
        return EngineError(f"ONNX Runtime cannot {act} the {self.spec.network.component} engine: {reason}.")

    def _ran_out(self, reason: str) -> bool:
        """Whether memory ran out; CUDA's libraries that find none for themselves say only that they did not start."""
        if says_out_of_memory(reason):
            return True
        return "NOT_INITIALIZED" in reason and is_short(self.device, self.memory_bytes)

    def _empty_outputs(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        network = self.spec.network
        return empty_tensors(network.outputs, network.sizes_of(inputs), self.spec.precision, self.device)

    def _synchronize(self) -> None:
        if self.device.type == "cuda":
            import torch

            torch.cuda.current_stream(self.device).synchronize()


class OnnxRuntimeBackend(Backend):
    """Exports to ONNX and runs by ONNX Runtime's provider for the device."""

    name: ClassVar[str] = "onnxruntime"
    weights: ClassVar[tuple[str, ...]] = (INSIDE, OUTSIDE)  # inside they are packed: a tenth less time on a CPU
    builds_hollow: ClassVar[bool] = True
    builds_beside_others: ClassVar[bool] = True

    def availability(self, device: torch.device) -> Availability:
        package = "onnxruntime-gpu" if device.type == "cuda" else "onnxruntime"
        install = f"pip install {package} onnx onnxscript"
        fault = import_fault(("onnx", "onnxruntime", "onnxscript"))
        if fault is not None:
            return Availability(False, f"ONNX Runtime needs {fault}", install)
        import onnxruntime

        provider = _PROVIDERS.get(device.type)
        if provider not in onnxruntime.get_available_providers():
            return Availability(False, f"The installed ONNX Runtime does not serve {device.type}.", install)
        return Availability(True, f"ONNX Runtime {onnxruntime.__version__} serves {device.type}.")

    def target(self, device: torch.device) -> Target:
        import onnxruntime

        return Target(
            self.name,
            onnxruntime.__version__,
            device.type,
            cuda_arch(device) or platform.machine().lower(),
            exporter_version(fused_attention=True),
        )

    def build(self, network: torch.nn.Module, spec: EngineSpec, folder: Path, report: Report) -> dict[str, str]:
        if spec.precision == "bf16":
            raise EngineError("ONNX Runtime serves fp32 and fp16, found bf16: choose one of those, or another backend.")
        report("export", 0.0)
        export_onnx(network, spec, folder, fused_attention=True)
        return {"exporter": exporter_version(fused_attention=True)}

    def load(self, plan: Plan | None, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> Runner:
        if plan is None:
            raise EngineError("ONNX Runtime needs a built engine, found none.")
        return OnnxRuntimeRunner(plan, spec, network, device)


def _provider(device: torch.device) -> Any:
    if device.type not in _PROVIDERS:
        raise BackendUnavailableError(f"ONNX Runtime serves cpu and cuda here, found {device.type}.")
    options = {"device_id": str(device.index or 0), **_CUDA_OPTIONS} if device.type == "cuda" else {}
    return (_PROVIDERS[device.type], options)


def _placement(tensor: torch.Tensor) -> dict[str, Any]:
    """Arguments that describe a tensor's memory to ONNX Runtime; bf16 has no NumPy dtype and is not served."""
    import numpy as np

    name = str(tensor.dtype).removeprefix("torch.")
    return {
        "device_type": tensor.device.type,
        "device_id": tensor.device.index or 0,
        "element_type": np.dtype(name),
        "shape": tuple(tensor.shape),
    }

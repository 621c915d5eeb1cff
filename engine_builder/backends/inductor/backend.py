"""Inductor: PyTorch's own compiler, ahead of time, for GPUs where TensorRT does not run, and for CPUs.

An engine is native code without weights. It takes in place those of the network that it is loaded
with, so that one engine serves every fine-tune, and a change of the weights in place needs no other. For the same
reason it has no fp32 modules: which layers overflow in fp16 is a matter of the weights.
"""

from __future__ import annotations

import json
import logging
import platform
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....common.device import cuda_arch
from ....common.errors import EngineError
from ....common.out_of_memory import is_out_of_memory
from ....common.shapes import ShapeProfile
from ....common.spec import EngineSpec, Target
from ...graph.onnx_export import dynamic_shapes, example_inputs, trace_sizes
from ..base import (
    OUTSIDE,
    WHOLE,
    Availability,
    Backend,
    BuildTarget,
    LoadNetwork,
    Part,
    Report,
    Runner,
    no_collection,
)
from ..network_tensors import layout_of
from .block_runner import BlockRunner
from .blocks import BLOCK, block_layout, blocks_of, export_block
from .cpp_compiler import compilers, install_line, proof_begun
from .package import BLOCK_FILE_NAME, WIRES, file_name, whole_wires, wires_text
from .parts import Cut, cut
from .runner import LAYOUT, InductorRunner
from .torch_workarounds import arrays_declared, layouts_as_run, mutations_remembered, vectors_untried

if TYPE_CHECKING:
    import torch

    from ...store.store import Plan

log = logging.getLogger(__name__)

LEAST_TORCH = (2, 8)
"""The first PyTorch whose packages leave their weights to the caller, on every platform."""
LEAST_CAPABILITY = (7, 0)
"""The oldest GPUs that Triton compiles for."""


REVISION = "revision 2"
"""Version of what is compiled: engines of the first have parameters of one element written into their code."""


class InductorBackend(Backend):
    """Exports by torch.export and compiles by AOTInductor."""

    name: ClassVar[str] = "inductor"
    weights: ClassVar[tuple[str, ...]] = (OUTSIDE,)
    has_fp32_fallback: ClassVar[bool] = False
    builds_beside_others: ClassVar[bool] = True
    builds_in_parts: ClassVar[bool] = True
    builds_blocks: ClassVar[bool] = True

    def __init__(self, device: torch.device | None = None, part: Part = WHOLE) -> None:
        self._device = device
        self._part = part

    def for_target(self, target: BuildTarget) -> InductorBackend:
        super().for_target(replace(target, part=WHOLE))
        return InductorBackend(target.device, target.part)

    def is_automatic(self, device: torch.device) -> bool:
        """False on CPUs, where ONNX Runtime is as fast and builds in seconds, and on AMD GPUs, which are untried."""
        import torch

        return device.type == "cuda" and torch.version.hip is None

    def availability(self, device: torch.device) -> Availability:
        import torch

        if device.type not in ("cpu", "cuda"):
            return Availability(False, f"Inductor serves cpu and cuda here, found {device.type}.")
        if tuple(map(int, torch.__version__.split(".")[:2])) < LEAST_TORCH:
            return Availability(False, f"Inductor's engines need PyTorch 2.8 or later, found {torch.__version__}.")
        if device.type == "cuda" and find_spec("triton") is None:
            package = "triton-windows" if platform.system() == "Windows" else "triton"
            return Availability(
                False, "Inductor needs the package triton on a GPU, which is missing.", f"pip install {package}"
            )
        if device.type == "cuda" and torch.version.hip is None:
            capability = torch.cuda.get_device_capability(device)
            if capability < LEAST_CAPABILITY:
                least, there = (".".join(map(str, each)) for each in (LEAST_CAPABILITY, capability))
                return Availability(False, f"Inductor serves GPUs of capability {least} or later, found {there}.")
        found = compilers()
        if not found:
            return Availability(False, "Inductor needs a C++ compiler, found none.", install_line())
        return Availability(True, f"Inductor of PyTorch {torch.__version__} serves {device.type} by {found[0]}.")

    def target(self, device: torch.device) -> Target:
        import torch

        versions = [f"torch {torch.__version__}"]
        if device.type == "cuda":
            versions.append(f"triton {import_module('triton').__version__}")
        cpu = f"{platform.machine().lower()} {torch.backends.cpu.get_cpu_capability()}"
        return Target(self.name, ", ".join(versions), device.type, cuda_arch(device) or cpu, REVISION)

    def begin(self) -> None:
        """Has the C++ compiler tried out, once for all processes, while the network is loaded and traced."""
        proof_begun("cpu" if self._device is None else self._device.type)

    def build(self, network: torch.nn.Module, spec: EngineSpec, folder: Path, report: Report) -> dict[str, str]:
        import torch

        device = self._device or torch.device("cpu")
        component = spec.network.component
        try:
            proof = proof_begun(device.type)
            with torch.inference_mode(False), torch.no_grad(), _quiet(), no_collection(), _attention(device):
                report("export", 0.1)
                traced = self._traced(network.to(device), spec, device)
                if traced is None:
                    return {}  # it cannot be cut: the first part is the whole
                report("compile", 0.3)
                path = folder / traced.file_name
                compiler = _with_proved(
                    proof, lambda name: _compile(traced.program, traced.metadata, path, name, device)
                )
        except (OSError, EngineError):
            raise
        except Exception as error:  # the compiler raises any error of its passes
            if is_out_of_memory(error):
                reason = f"Compiling {component} ran out of the GPU's memory: choose a smaller size."
                raise EngineError(reason) from error
            log.warning("compiling failed", exc_info=True)
            raise EngineError(f"Inductor cannot compile the {component} network: {_reason(error)}.") from error
        return {"compiler": compiler, **traced.details}

    def _traced(self, network: torch.nn.Module, spec: EngineSpec, device: torch.device) -> _Traced | None:
        """What to compile: a block of the network, a part of it, or all; None where the part is in another one."""
        blocks = blocks_of(network)
        if blocks is not None:
            if self._part.index:
                return None
            program = export_block(network, blocks, spec, hinted_sizes(spec.profile), device)
            return _Traced(BLOCK_FILE_NAME, program, {BLOCK: block_layout(blocks[0])}, {"engine_of": "one block"})
        program = _export(network, spec, device)
        part = None if self._part == WHOLE else cut(program, self._part)
        if part is None and self._part.index:
            return None
        program = program if part is None else _export_cut(part, device)
        wires = whole_wires(spec.network) if part is None else part.wires
        metadata = {LAYOUT: json.dumps(layout_of(network)), WIRES: wires_text(wires)}
        return _Traced(file_name(self._part.index), program, metadata, {"parts": str(wires.count)})

    def load(self, plan: Plan | None, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> Runner:
        if plan is None:
            raise EngineError("Inductor needs a built engine, found none.")
        runner = BlockRunner if BLOCK_FILE_NAME in plan.manifest.files else InductorRunner
        return runner(plan, spec, network, device)


@dataclass(frozen=True)
class _Traced:
    """A program to compile, what its package says of itself, and what the manifest does."""

    file_name: str
    program: Any
    metadata: dict[str, str]
    details: dict[str, str]


def _export(network: torch.nn.Module, spec: EngineSpec, device: torch.device) -> Any:
    import torch

    inputs = example_inputs(spec, hinted_sizes(spec.profile))
    with layouts_as_run(device), mutations_remembered():
        program = torch.export.export(
            network,
            (),
            {name: tensor.to(device) for name, tensor in inputs.items()},
            dynamic_shapes=dynamic_shapes(spec.network.inputs, spec.profile),
            strict=False,
        )
    strange = sorted(set(program.constants) - set(layout_of(network)))
    if strange:
        raise EngineError(
            f"Inductor's engines take all their tensors from the network, but {spec.network.component} "
            f"makes {len(strange)} of its own: expected them as buffers, found {strange[0]}."
        )
    return program


def _export_cut(part: Cut, device: torch.device) -> Any:
    import torch

    with layouts_as_run(device), mutations_remembered():
        return torch.export.export(part.module, part.examples, strict=False)


def hinted_sizes(profile: ShapeProfile) -> dict[str, int]:
    """Sizes to trace at: those that the engine is tuned for, but never 1 where a dimension, or what it is a multiple
    of, is dynamic."""
    traced = trace_sizes(profile)
    return {
        name: limits.opt if limits.opt > limits.multiple else traced[name] for name, limits in profile.ranges.items()
    }


def _with_proved(proof: Future[str], compile_by: Callable[[str], None]) -> str:
    """Compiles by a compiler that has proved itself, and names it.

    While the proof is under way the first there is does the work, which is done again if it proves unfit.
    """
    compiler = proof.result() if proof.done() else compilers()[0]
    try:
        compile_by(compiler)
    except Exception:
        if proof.result() == compiler:
            raise
    if proof.result() != compiler:
        compile_by(proof.result())
    return proof.result()


def _compile(program: Any, metadata: dict[str, str], path: Path, compiler: str, device: torch.device) -> None:
    import torch._inductor

    with arrays_declared(), mutations_remembered(), vectors_untried(device):
        torch._inductor.aoti_compile_and_package(
            program,
            package_path=str(path),
            inductor_configs={
                "cpp.cxx": compiler,
                "aot_inductor.package_constants_in_so": False,
                # Parameters of up to 8 elements would be written into the code, and what is computed from one of one.
                "always_keep_tensor_constants": True,
                "joint_graph_constant_folding": False,
                "aot_inductor.metadata": metadata,
            },
        )


@contextmanager
def _attention(device: torch.device) -> Iterator[None]:
    """Prefers cuDNN's attention on NVIDIA's GPUs, the fastest over thousands of tokens."""
    import torch

    if device.type != "cuda" or torch.version.hip:
        yield
        return
    from torch.nn.attention import SDPBackend, sdpa_kernel

    order = [
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
        SDPBackend.MATH,
    ]
    with sdpa_kernel(order, set_priority=True):
        yield


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the compiler's warnings about itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _reason(error: Exception) -> str:
    """The first line of content."""
    lines = (line.strip() for line in str(error).splitlines())
    return next((line[:300].rstrip(".:") for line in lines if line), type(error).__name__)

"""TensorRT 10, 11 and RTX: plans compiled for one GPU architecture."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ....common.device import cuda_arch
from ....common.errors import BackendUnavailableError, EngineError
from ....common.shapes import ShapeProfile
from ....common.spec import EngineSpec, NetworkSpec, Target, TensorSpec
from ...graph.onnx_export import export_onnx, exporter_version
from ...graph.outside_weights import FILE_NAME as WEIGHTS
from ...graph.quantize import check_quantizable, quantize
from ...graph.recorded_calls import Calibration
from ...store.sealed_cache import TIMING_CACHE
from ..base import (
    INSIDE,
    OUTSIDE,
    Availability,
    Backend,
    BuildTarget,
    LoadNetwork,
    Report,
    Runner,
    import_fault,
    no_collection,
)
from .library import (
    FULL,
    PLAN,
    RTX,
    RTX_ARCHS,
    Library,
    aim,
    borrow_timing_cache,
    choose_library,
    install_line,
    load_library,
    make_logger,
    timing_bytes,
)
from .weight_streaming import allow_streaming, needs_streaming, total_bytes, total_bytes_of, weights_bytes

if TYPE_CHECKING:
    import torch

    from ...store.store import Plan

log = logging.getLogger(__name__)

OPSET = 22
"""The first opset in which bf16 convolutions exist, and the last without Attention.

TensorRT-RTX 1.7 builds that one in fp16 for heads of 12 channels and more, and refuses those of 8 in a sentence;
in bf16 and fp32 heads of 8, 16 and 128 channels ended it by a segmentation fault. As the products that it consists
of, all of these build.
"""
PRECISIONS = ("fp16", "bf16", "fp32")
BUILD_SPAN = (0.45, 0.8)
"""The part of the whole progress that building takes, after export and parsing."""


class TensorRTBackend(Backend):
    """Exports to ONNX and compiles it, strongly typed, for the GPU at hand or for a named architecture."""

    name: ClassVar[str] = "tensorrt"
    weights: ClassVar[tuple[str, ...]] = (OUTSIDE, INSIDE)
    builds_hollow: ClassVar[bool] = True

    def __init__(self, arch: str | None = None, calibration: Calibration | None = None) -> None:
        self._arch = arch
        self._calibration = calibration

    def for_target(self, target: BuildTarget) -> TensorRTBackend:
        """This backend, building for that target; RTX alone needs no GPU of the architecture."""
        super().for_target(BuildTarget(target.device, part=target.part))
        if target.arch not in (None, *RTX_ARCHS):
            raise EngineError(f"TensorRT-RTX builds for {', '.join(RTX_ARCHS)}, found {target.arch!r:.80}.")
        return TensorRTBackend(target.arch, target.calibration)

    def require_library(self) -> None:
        """Raises BackendUnavailableError, with the line to install it, when the library to build with is missing."""
        self._library(self._arch or RTX_ARCHS[-1])

    def availability(self, device: torch.device) -> Availability:
        found = cuda_arch(device)
        if found is None:
            return Availability(False, "TensorRT runs on NVIDIA GPUs, found none that PyTorch can use.")
        if self._arch not in (None, found):
            return Availability(False, f"This engine is for {self._arch}, found a GPU of {found}.")
        return _library_availability(found)

    def place_weights(self, wanted: str | None, size_bytes: int, device: torch.device) -> str:
        """As everywhere; the choice for weights that are too many for this GPU is inside, for TensorRT streams them."""
        if wanted is None and needs_streaming(size_bytes, total_bytes(device)):
            return INSIDE
        return super().place_weights(wanted, size_bytes, device)

    def target(self, device: torch.device) -> Target:
        arch = self._arch_for(device)
        return Target(self.name, self._library(arch).version, "cuda", arch, exporter_version(OPSET))

    def build(self, network: torch.nn.Module, spec: EngineSpec, folder: Path, report: Report) -> dict[str, str]:
        import torch

        arch = self._arch_for(torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu"))
        library = self._library(arch)
        if self._calibration is not None:
            check_quantizable(spec.precision, arch)
        report("export", 0.0)
        work = folder / "onnx"
        work.mkdir()
        with no_collection():
            graph = export_onnx(network, spec, work, OPSET)
        if self._calibration is not None:
            report("take scales", 0.2)
            graph = quantize(graph, spec, self._calibration, OPSET)
        report("parse", 0.4)
        streams = spec.holds_weights and needs_streaming(weights_bytes(network), total_bytes_of(arch))
        compiled = compile_graph(library, graph, spec, arch, report, folder / TIMING_CACHE, streams=streams)
        report("serialize", BUILD_SPAN[1])
        (folder / PLAN).write_bytes(compiled.plan)
        if not spec.holds_weights:
            (work / WEIGHTS).replace(folder / WEIGHTS)
        shutil.rmtree(work)
        found = {"exporter": exporter_version(OPSET), "library": library.version, "layers": str(compiled.layers)}
        found |= {"weights": "can be streamed"} if streams else {}
        known = compiled.activation_bytes is not None
        return {**found, "activation_bytes": str(compiled.activation_bytes)} if known else found

    def load(self, plan: Plan | None, spec: EngineSpec, network: LoadNetwork, device: torch.device) -> Runner:
        from .runner import TensorRTRunner

        if plan is None:
            raise EngineError("TensorRT needs a built engine, found none.")
        return TensorRTRunner(plan, spec, network, device, self._library(self._arch_for(device)))

    def _arch_for(self, device: torch.device) -> str:
        arch = self._arch or cuda_arch(device)
        if arch is None:
            raise BackendUnavailableError(
                f"TensorRT needs an NVIDIA GPU to build for, found none: name one of {', '.join(RTX_ARCHS)}."
            )
        return arch

    @staticmethod
    def _library(arch: str) -> Library:
        found = _library_availability(arch)
        name = choose_library(arch)
        if name is None or not found.ok:
            raise BackendUnavailableError(found.sentence)
        return load_library(name)


def _library_availability(arch: str) -> Availability:
    name = choose_library(arch)
    wanted = RTX if arch in RTX_ARCHS else FULL
    install = install_line(wanted)
    if name is None:
        return Availability(False, f"A GPU of {arch} needs the package {wanted}, which is missing.", install)
    for packages, line in (((name,), install), (("onnx", "onnxscript"), "pip install -U onnx onnxscript")):
        fault = import_fault(packages)
        if fault is not None:
            return Availability(False, f"TensorRT needs {fault}", line)
    library = load_library(name)
    return Availability(True, f"{library.version} serves {arch}.")


@dataclass(frozen=True)
class CompiledGraph:
    """A plan in TensorRT's own memory, which reads as bytes, and what is known of it."""

    plan: Any
    activation_bytes: int | None
    """Its bytes on the GPU beside its weights, if TensorRT reports them."""
    layers: int
    """Layers that TensorRT made of the graph's nodes, before it fused any."""


def compile_graph(
    library: Library, graph: Path, spec: EngineSpec, arch: str, report: Report, timing_cache: Path, *, streams: bool
) -> CompiledGraph:
    """Parses the graph and builds it. Measured times are added to the file `timing_cache`."""
    trt = library.module
    logger = make_logger(library)
    builder = _made(trt.Builder(logger), "builder", logger)
    builder.max_threads = os.cpu_count() or 1
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = _made(builder.create_network(typed), "network", logger)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(graph)):
        reasons = "; ".join(str(parser.get_error(number).desc()) for number in range(parser.num_errors))
        raise EngineError(f"TensorRT cannot take the {spec.network.component} network: {reasons}")
    config = _made(builder.create_builder_config(), "configuration", logger)
    if not aim(library, config, arch):
        raise EngineError(f"{library.version} does not build for {arch}.")
    borrow_timing_cache(library, config, timing_cache.read_bytes() if timing_cache.is_file() else None)
    if streams:
        allow_streaming(library, config)
    for shapes in spec.profile.profiles:
        if config.add_optimization_profile(_profile(builder, network, spec.network, shapes)) < 0:
            raise EngineError(f"TensorRT refused a shape profile of {spec.network.component}: {logger.last_error}")
    report("build", BUILD_SPAN[0])
    monitor = _make_monitor(library, report)
    config.progress_monitor = monitor
    plan = builder.build_serialized_network(network, config)
    if monitor.raised is not None:
        raise monitor.raised
    measured = timing_bytes(library, config)
    if measured is not None:
        timing_cache.write_bytes(measured)
    made = _made(plan, f"engine for {spec.network.component}", logger)
    return CompiledGraph(made, logger.activation_bytes, network.num_layers)


def _profile(builder: Any, network: Any, described: NetworkSpec, shapes: ShapeProfile) -> Any:
    """An optimization profile: least, tuned and greatest shape of every input that the graph kept; weights have one."""
    by_name = {tensor.name: tensor for tensor in described.inputs}
    profile = builder.create_optimization_profile()
    names = (network.get_input(number).name for number in range(network.num_inputs))
    for name in (name for name in names if name in by_name):
        profile.set_shape(name, *(_shape(by_name[name], shapes, which) for which in ("min", "opt", "max")))
    return profile


def _shape(tensor: TensorSpec, shapes: ShapeProfile, which: str) -> tuple[int, ...]:
    return tensor.shape_at({name: getattr(limits, which) for name, limits in shapes.ranges.items()})


def _make_monitor(library: Library, report: Report) -> Any:
    """Turns TensorRT's phases into progress over BUILD_SPAN.

    An error of `report` ends the build and is kept in `raised`, for it may not pass through TensorRT.
    """
    trt = library.module
    start, end = BUILD_SPAN

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}
            self.raised: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                self._steps[phase_name] = max(num_steps, 1)

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            steps = self._steps.get(phase_name)
            if steps is None:
                return self.raised is None
            try:
                report("build", start + (end - start) * min((step + 1) / steps, 1.0))
            except BaseException as error:
                self.raised = error
            return self.raised is None

    return Monitor()


def _made(thing: Any, what: str, logger: Any) -> Any:
    """`thing`, which TensorRT gives as None when it failed."""
    if thing is None:
        raise EngineError(f"TensorRT could not make the {what}: {logger.last_error}")
    return thing

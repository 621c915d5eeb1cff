"""The part of a build that may crash: load the network, compile it, compare it with eager PyTorch."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...common.errors import EngineError, StorageError
from ...common.network_source import NetworkSource
from ...common.spec import EngineSpec, spec_from_dict
from ..backends.base import WHOLE, Backend, BuildTarget, LoadNetwork, Part, Report
from ..backends.eager import EagerBackend
from ..backends.registry import BACKENDS
from ..graph.recorded_calls import RECORDED, Calibration, save_parity_calls
from ..store.manifest import Manifest, ParityReport, parity_report_from_dict
from ..store.store import Plan, describe_files
from .parity import answered, check_parity, check_recorded_parity, passes, timesteps_of

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Compiled:
    """Results of a compilation beside the files: details worth keeping, and the parity check's verdict.

    The verdict is None for an engine that cannot run here: it was built for another GPU. `islands` names the
    modules of an fp16 network that compute in fp32.
    """

    details: Mapping[str, str]
    verdict: ParityReport | None
    islands: tuple[str, ...] = ()


@dataclass(frozen=True)
class BuildRequest:
    """Request for a build: the specification, the network's source, the backend and the device."""

    spec: EngineSpec
    source: NetworkSource
    backend: Backend
    device: torch.device
    arch: str | None = None
    """Another architecture to build for than that of `device`."""
    reference: NetworkSource | None = None
    """Network that the engine is compared with, where it is not the network that the engine is compiled from."""
    details: Mapping[str, str] = field(default_factory=dict)
    """Details to keep in the manifest, beside the backend's own, of an engine that was compared."""
    calibration: Calibration | None = None
    """Recorded inputs that a quantized engine's scales are taken from."""
    recorded: Calibration | None = None
    """Recorded calls whose inputs the parity check takes in place of random ones."""
    device_bytes: int = 0
    """GPU memory that the network takes as it is compared, weights and all, if it is built for `device`."""
    part: Part = WHOLE
    """Part of the network, where several processes compile it; the first is compared once all are compiled."""
    of_blocks: bool = False
    """Whether the source gives a few of the network's equal blocks, of which one is compiled."""

    @property
    def needs_weights(self) -> bool:
        """Whether the network's weights take part in the build.

        An engine with weights outside needs them to be compared here, and to find what exceeds fp16.
        """
        if self.spec.holds_weights or not self.backend.builds_hollow:
            return True
        return self.source.has_weights and (self.spec.precision == "fp16" or self.runs_here)

    @property
    def runs_here(self) -> bool:
        """Whether the engine can run on the request's device, and is compared there."""
        return self.aimed_backend.availability(self.device).ok

    @property
    def aimed_backend(self) -> Backend:
        """The backend, aimed at the request's target."""
        return self.backend.for_target(BuildTarget(self.device, self.arch, self.calibration, self.part))


def compile_engine(
    request: BuildRequest, folder: Path, report: Report, other_parts: Callable[[], None] | None = None
) -> Compiled:
    """Compiles into `folder` and checks the result there.

    `other_parts` returns when the network's other parts are there too, which other processes compile; without it the
    network is compiled in one piece. Raises EngineError when the network cannot be compiled or does not pass,
    StorageError for a full disk.
    """
    if other_parts is None and request.part.index == 0:
        request = replace(request, part=WHOLE)
    report("load network", 0.0)
    backend = request.aimed_backend
    backend.begin()
    network = request.source.load(hollow=not request.needs_weights)
    islands = _fp32_fallback(request, network, report)
    try:
        details = backend.build(network, request.spec, folder, report)
        if (calls := request.calibration or request.recorded) is not None:
            save_parity_calls(calls, folder)
    except OSError as error:
        raise StorageError(f"The engine could not be written to {folder}: {error.strerror or error}.") from error
    if request.part.index:
        return Compiled(details, None)
    if other_parts is not None:
        other_parts()
    report("check", 0.8)
    is_compared = request.runs_here and request.needs_weights
    return Compiled(details, _check_parity(request, folder, network, islands) if is_compared else None, islands)


def _fp32_fallback(request: BuildRequest, network: torch.nn.Module, report: Report) -> tuple[str, ...]:
    """Modules cast to fp32, for fp16 is too small for these weights."""
    if request.spec.precision != "fp16" or not request.backend.has_fp32_fallback or not request.needs_weights:
        return ()
    from ..graph.fp32_fallback import apply_fp32_fallback

    report("look for numbers beyond fp16", 0.0)
    return apply_fp32_fallback(network, request.spec)


def request_to_dict(request: BuildRequest, folder: Path) -> dict[str, Any]:
    """The request as JSON data for another process."""
    return {
        "spec": asdict(request.spec),
        "source": asdict(request.source),
        "reference": request.reference and asdict(request.reference),
        "backend": request.backend.name,
        "device": str(request.device),
        "arch": request.arch,
        "calibration": request.calibration and str(request.calibration.path),
        "recorded": request.recorded and str(request.recorded.path),
        "folder": str(folder),
        "part": asdict(request.part),
    }


def compiled_from_dict(data: Mapping[str, Any]) -> Compiled:
    """Rebuilds a Compiled from `compiled_to_dict`'s data after JSON."""
    return Compiled(data["details"], parity_report_from_dict(data["verdict"]), tuple(data["islands"]))


def request_from_dict(data: Mapping[str, Any]) -> BuildRequest:
    """Rebuilds a BuildRequest from `request_to_dict`'s data after JSON."""
    import torch

    return BuildRequest(
        spec=spec_from_dict(data["spec"]),
        source=NetworkSource(**data["source"]),
        backend=BACKENDS[data["backend"]],
        device=torch.device(data["device"]),
        arch=data["arch"],
        calibration=data["calibration"] and Calibration(Path(data["calibration"])),
        recorded=data["recorded"] and Calibration(Path(data["recorded"])),
        reference=data["reference"] and NetworkSource(**data["reference"]),
        part=Part(**data["part"]),
    )


def compiled_to_dict(compiled: Compiled) -> dict[str, Any]:
    """The result as JSON data, with the peak of this process's host memory."""
    return asdict(replace(compiled, details={**compiled.details, **_peak_memory()}))


def _peak_memory() -> dict[str, str]:
    """Peak of this process's host memory so far, in bytes; empty where the system does not report it."""
    try:
        import resource
    except ImportError:  # Windows
        return {}
    unit = 1 if sys.platform == "darwin" else 1024
    return {"peak_memory_bytes": str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)}


def _check_parity(
    request: BuildRequest, folder: Path, network: torch.nn.Module, islands: tuple[str, ...]
) -> ParityReport:
    """The parity check of an engine that is not published yet."""
    target = request.backend.target(request.device)
    plan = Plan(folder, Manifest(request.spec, target, describe_files(folder), None, 0.0, "", islands=islands))
    plain = None if request.reference is None else request.reference.load
    return check_plan(plan, request.backend, lambda: network, request.device, plain)


def check_plan(
    plan: Plan, backend: Backend, network: LoadNetwork, device: torch.device, plain: LoadNetwork | None = None
) -> ParityReport:
    """Compares an engine with eager PyTorch on the device; raises EngineError when it does not pass.

    `network` gives the engine its weights where it holds none; `plain` is the reference where that is another. An
    engine with fp32 modules is compared with a network that has them too, for one without gives no numbers. One with
    recorded calls is compared on their inputs; where these gave it its scales, with eager PyTorch's outputs in them.
    """
    spec = plan.manifest.spec
    candidate = backend.load(plan, spec, network, device)
    calls = Calibration(plan.verified(RECORDED)).calls() if RECORDED in plan.manifest.files else []
    if spec.calibration:
        verdict = check_recorded_parity(candidate, calls)
    else:
        reference = EagerBackend().load(None, spec, _reference_network(plain or network, plan.manifest), device)
        if calls:
            calls = answered(reference, [call.inputs for call in calls])
            verdict = check_recorded_parity(candidate, calls)
        else:
            verdict = check_parity(reference, candidate, spec, timesteps_of(spec, device))
    try:
        passes(verdict, spec.products)
    except EngineError as error:
        raise EngineError(f"{spec.network.component}: {error}") from error
    return verdict


def _reference_network(load: LoadNetwork, manifest: Manifest) -> LoadNetwork:
    """The reference's network, made safe in fp16 if the engine's was."""
    if not manifest.islands:
        return load
    from ..graph.fp32_fallback import with_fp32_fallback

    return with_fp32_fallback(load, manifest.spec)

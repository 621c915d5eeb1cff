"""The part of a build that may crash: load the network, compile it, compare it with eager PyTorch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backends.base import Backend, Report
from .backends.eager import EagerBackend
from .backends.registry import BACKENDS
from .errors import EngineError, StorageError
from .manifest import Manifest, Verdict
from .source import NetworkSource
from .spec import EngineSpec, spec_from_dict
from .store import Plan, describe_files
from .verify import judge, passes

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Compiled:
    """What compiling gave beside the files: details worth keeping, and the gate's verdict."""

    details: Mapping[str, str]
    verdict: Verdict


@dataclass(frozen=True)
class BuildRequest:
    """What to build, from what, by which backend, for which device."""

    spec: EngineSpec
    source: NetworkSource
    backend: Backend
    device: torch.device


def compile_engine(request: BuildRequest, folder: Path, report: Report) -> Compiled:
    """Compiles into `folder` and checks the result there.

    Raises EngineError when the network cannot be compiled or does not pass, StorageError for a full disk.
    """
    report("load network", 0.0)
    network = request.source.load()
    try:
        details = request.backend.build(network, request.spec, folder, report)
    except OSError as error:
        raise StorageError(f"The engine could not be written to {folder}: {error.strerror or error}.") from error
    report("check", 0.8)
    return Compiled(details, _gate(request, folder, network))


def request_to_dict(request: BuildRequest, folder: Path) -> dict[str, Any]:
    """The request as JSON data for another process."""
    return {
        "spec": asdict(request.spec),
        "source": asdict(request.source),
        "backend": request.backend.name,
        "device": str(request.device),
        "folder": str(folder),
    }


def compile_from(data: Mapping[str, Any], report: Report) -> dict[str, Any]:
    """`compile_engine` over `request_to_dict`'s data, with the result as JSON data too."""
    import torch

    request = BuildRequest(
        spec=spec_from_dict(data["spec"]),
        source=NetworkSource(**data["source"]),
        backend=BACKENDS[data["backend"]],
        device=torch.device(data["device"]),
    )
    return asdict(compile_engine(request, Path(data["folder"]), report))


def _gate(request: BuildRequest, folder: Path, network: torch.nn.Module) -> Verdict:
    """Compares the engine in `folder` with eager PyTorch on the same device."""
    unjudged = Verdict(0.0, 0.0, 0.0, False, ())
    target = request.backend.target(request.device)
    plan = Plan(folder, Manifest(request.spec, target, describe_files(folder), unjudged, 0.0, ""))
    reference = EagerBackend().load(None, request.spec, lambda: network, request.device)
    candidate = request.backend.load(plan, request.spec, lambda: network, request.device)
    try:
        reference.load()
        candidate.load()
        verdict = judge(reference, candidate, request.spec)
    finally:
        candidate.unload()
        reference.unload()
    try:
        passes(verdict, request.spec.precision)
    except EngineError as error:
        raise EngineError(f"{request.spec.network.component}: {error}") from error
    return verdict

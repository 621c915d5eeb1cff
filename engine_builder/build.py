"""One engine from start to finish: look, lock, compile, check, publish."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from .backends.base import Backend, NetworkSource, Report
from .backends.eager import EagerBackend
from .errors import EngineError, StorageError
from .key import engine_key
from .manifest import Manifest, Verdict
from .spec import EngineSpec, Target
from .store import EngineStore, Plan, describe_files
from .verify import judge, passes

if TYPE_CHECKING:
    from pathlib import Path

    import torch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildRequest:
    """What to build, from what, for which device."""

    spec: EngineSpec
    network: NetworkSource
    backend: Backend
    device: torch.device


@dataclass(frozen=True)
class BuildResult:
    """An engine, and whether it was there already."""

    plan: Plan
    reused: bool


def quiet(stage: str, fraction: float) -> None:
    """A report that tells nobody."""


def build_engine(
    request: BuildRequest, store: EngineStore, *, force: bool = False, report: Report = quiet
) -> BuildResult:
    """The engine for the request, from the store or newly built; one builder a key across processes.

    `report` may raise to cancel; nothing is then left behind. Raises EngineError when the network cannot
    be compiled or its engine does not pass the gate, StorageError when the disk refuses.
    """
    target = request.backend.target(request.device)
    key = engine_key(request.spec, target)
    store.sweep()
    with store.lock(key):
        found = None if force else store.find(key)
        if found is not None:
            return BuildResult(found, reused=True)
        with store.staging() as folder:
            return BuildResult(_build(request, target, folder, store, report), reused=False)


def _build(request: BuildRequest, target: Target, folder: Path, store: EngineStore, report: Report) -> Plan:
    started = time.monotonic()
    report("load network", 0.0)
    network = request.network()
    try:
        details = request.backend.build(network, request.spec, folder, report)
    except OSError as error:
        raise StorageError(f"The engine could not be written to {folder}: {error.strerror or error}.") from error
    report("check", 0.8)
    manifest = Manifest(
        spec=request.spec,
        target=target,
        files=describe_files(folder),
        verdict=Verdict(0.0, 0.0, 0.0, False, ()),
        build_s=0.0,
        created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        details=details,
    )
    verdict = _gate(request, Plan(folder, manifest), network)
    report("publish", 0.95)
    elapsed_s = round(time.monotonic() - started, 3)
    plan = store.publish(folder, replace(manifest, verdict=verdict, build_s=elapsed_s))
    log.info("built %s by %s in %.1f s", request.spec.network.component, request.backend.name, elapsed_s)
    report("publish", 1.0)
    return plan


def _gate(request: BuildRequest, plan: Plan, network: torch.nn.Module) -> Verdict:
    """Compares the engine in staging with eager PyTorch on the same device."""
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

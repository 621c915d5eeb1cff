"""One engine from start to finish: look, lock, check the room, compile in a child, publish."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from itertools import accumulate
from pathlib import Path

from ...common.device import free_bytes, free_host_bytes
from ...common.errors import EngineError, StorageError
from ...common.spec import Scope
from ..backends.base import Part, Report
from ..store.key import engine_key
from ..store.manifest import Manifest
from ..store.sealed_cache import borrowed
from ..store.store import EngineStore, Plan, describe_files
from .build_process import BuildProcess
from .compile import BuildRequest, Compiled
from .eta import Remaining, last_build_s

log = logging.getLogger(__name__)

GIB = 1 << 30
BASE_MEMORY_BYTES = GIB
"""Host memory of the child before it has loaded a network: Python, PyTorch, the exporter."""
MEMORY_PER_WEIGHT = 3.0
"""Host memory for each byte of weights: the network, the traced program, the copy that is written.

I2VGen-XL's core at its published size held 8.5 GiB that the system could not take back, for 2.65 GiB of weights, and
5.6 GiB of mapped files that it could.
"""
MEMORY_PER_QUANTIZED_WEIGHT = 10.0
"""The same where ModelOpt takes scales, with weights in fp32: 2.5 GiB for 0.21, 8.9 GiB for 0.83."""
HOLLOW_MEMORY_BYTES = 3 * GIB
"""Host memory of the child where it builds without weights, the exporter's graph included."""
DISK_PER_WEIGHT = 1.2
CORES_PER_BUILD = 3
"""Cores of a build with a GPU: one for Python, the others for the compilers that it starts."""
MAX_PARTS = 4
LEAST_PARTED_BYTES = 1 << 23
"""Weights of a network that is worth more than one process: the bundled model's core has nearly twice as many."""
CORES_PER_PART = 4
"""Cores of a machine for each part of a network: other networks are compiled beside it."""
BUILDERS_ON_CPU = 2
"""Builds at a time on a machine without a GPU: each is one thread of Python."""
BASE_DEVICE_BYTES = 1 << 29
"""GPU memory of the child for its CUDA context and its libraries."""


@dataclass(frozen=True)
class BuildResult:
    """An engine, and whether it was there already."""

    plan: Plan
    reused: bool


def quiet(stage: str, fraction: float) -> None:
    """A report without a listener."""


def find_engine(request: BuildRequest, store: EngineStore) -> Plan | None:
    """The engine for the request, if it is in the store; raises EngineError where its backend cannot build it."""
    return store.find(engine_key(request.spec, request.aimed_backend.target(request.device)))


def build_engine(
    request: BuildRequest,
    store: EngineStore,
    process: BuildProcess,
    *,
    force: bool = False,
    report: Report = quiet,
) -> BuildResult:
    """The engine for the request, from the store or newly built; one builder a key across processes.

    Waits for an earlier builder of the same key. `report` may raise to cancel; nothing is then left behind. Raises
    EngineError when the network cannot be compiled or its engine does not pass the parity check, StorageError when
    the disk refuses.
    """
    target = request.aimed_backend.target(request.device)
    key = engine_key(request.spec, target)
    store.sweep()
    with store.lock(key, lambda: report("another process builds it", 0.0)):
        found = None if force else store.find(key)
        if found is not None:
            return BuildResult(found, reused=True)
        with store.staging() as folder:
            check_room(request, store.root)
            remaining = Remaining(last_build_s(request.spec, request.backend.name, store))
            with borrowed(store.timing_cache(target), folder):
                compiled, build_s = _compile(request, folder, store.log_path(key), process, remaining.over(report))
            report("publish", 0.95)
            manifest = Manifest(
                spec=request.spec,
                target=target,
                files=describe_files(folder),
                verdict=compiled.verdict,
                build_s=build_s,
                created_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
                details={**(request.details if compiled.verdict is not None else {}), **compiled.details},
                islands=compiled.islands,
            )
            plan = store.publish(folder, manifest)
    log.info("built %s by %s in %.1f s", request.spec.network.component, request.backend.name, build_s)
    report("publish", 1.0)
    return BuildResult(plan, reused=False)


def _compile(
    request: BuildRequest, folder: Path, log_path: Path, process: BuildProcess, report: Report
) -> tuple[Compiled, float]:
    """The child's result, and the seconds of the compilation."""
    started = time.monotonic()
    request = replace(request, part=Part(0, parts_of(request)))
    compiled = process.compile(request, folder, log_path, report)
    return compiled, round(time.monotonic() - started, 3)


def check_room(request: BuildRequest, root: Path) -> None:
    """Raises EngineError or StorageError, with both figures, when memory, GPU or disk cannot hold the build."""
    check_memory(request)
    weights, component = request.source.size_bytes, request.spec.network.component
    needed, free = int(DISK_PER_WEIGHT * weights) if request.spec.holds_weights else 0, shutil.disk_usage(root).free
    if free < needed:
        raise StorageError(
            f"Building {component} needs about {needed / GIB:.1f} GiB in {root}, found {free / GIB:.1f} GiB free."
        )


def check_memory(request: BuildRequest) -> None:
    """As `check_room`, for the memory of the host and of the GPU."""
    component = request.spec.network.component
    needed, free = _memory_needed(request), free_host_bytes()
    if free is not None and free < needed:
        raise EngineError(
            f"Building {component} needs about {needed / GIB:.1f} GiB of memory, found {free / GIB:.1f} GiB free: "
            "close other programs and try again."
        )
    needed, free = needed_device_bytes(request), free_bytes(request.device)
    if free is not None and free < needed:
        raise EngineError(
            f"Building {component} needs about {needed / GIB:.1f} GiB of GPU memory, found {free / GIB:.1f} GiB free: "
            "close other programs, or build for a smaller size."
        )


def _memory_needed(request: BuildRequest) -> int:
    if not request.needs_weights:
        return HOLLOW_MEMORY_BYTES
    per_weight = MEMORY_PER_WEIGHT if request.calibration is None else MEMORY_PER_QUANTIZED_WEIGHT
    return BASE_MEMORY_BYTES + int(per_weight * request.source.size_bytes)


def needed_device_bytes(request: BuildRequest) -> int:
    """Memory in bytes that a build takes of this machine's GPU; 0 for a build for another GPU."""
    return 0 if request.arch else BASE_DEVICE_BYTES + request.device_bytes


def builds_at_once(requests: Sequence[BuildRequest]) -> int:
    """Number of these builds that may run at a time, at least one, by the room in memory, GPU and cores."""
    if any(request.device.type == "cpu" for request in requests):
        return BUILDERS_ON_CPU
    if not requests or not all(request.backend.builds_beside_others for request in requests):
        return 1
    on_device = _fitting([needed_device_bytes(each) for each in requests], free_bytes(requests[0].device))
    in_memory = _fitting([_memory_needed(each) for each in requests], free_host_bytes())
    return max(1, min(on_device, in_memory, (os.cpu_count() or 1) // CORES_PER_BUILD))


def parts_of(request: BuildRequest) -> int:
    """Number of parts to compile the network in, for which half of the free memory has room.

    Parts pay for the networks of a clip's steps, whose graphs have thousands of operators, at sizes that are known.
    """
    ranges = request.spec.profile.ranges.values()
    has_steps = any(tensor.scope is Scope.STEP for tensor in request.spec.network.inputs)
    is_large = request.source.size_bytes >= LEAST_PARTED_BYTES
    is_fixed = all(limits.min == limits.max for limits in ranges)
    if request.of_blocks or not (request.backend.builds_in_parts and has_steps and is_large and is_fixed):
        return 1
    free = ((free_host_bytes(), _memory_needed(request)), (free_bytes(request.device), needed_device_bytes(request)))
    room = (there // 2 // needed for there, needed in free if there is not None and needed)
    return max(1, min(MAX_PARTS, (os.cpu_count() or 1) // CORES_PER_PART, *room))


def _fitting(sizes: Sequence[int], free: int | None) -> int:
    """Number of the sizes that fit together, the largest first; all where the free memory is unknown."""
    sums = accumulate(sorted(sizes, reverse=True))
    return len(sizes) if free is None else sum(total <= free for total in sums)

"""Building: once a key across processes, nothing visible before it passed, nothing left behind when it did not."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, StorageError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.engine_builder.backends.base import Availability
from i2v_tensorrt.engine_builder.build import build as build_module
from i2v_tensorrt.engine_builder.build.build import (
    BASE_DEVICE_BYTES,
    BUILDERS_ON_CPU,
    CORES_PER_BUILD,
    BuildResult,
    build_engine,
    builds_at_once,
    check_room,
)
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.build.parity import passes
from i2v_tensorrt.engine_builder.graph.recorded_calls import Calibration
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import CPU, LIMITS, InProcess, ToyBackend, ToyNetwork, ToySource, contents, toy_spec

TESTS = Path(__file__).resolve().parents[2]
CHILD = """
import runpy, sys, time
from pathlib import Path
runpy.run_path(sys.argv[1])
toys = runpy.run_path(sys.argv[2])
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore
store = EngineStore(Path(sys.argv[3]))
def dawdle(folder):
    print("building", flush=True)
    time.sleep(float(sys.argv[4]))
backend = toys["ToyBackend"](while_building=dawdle, builds_log=store.root / "builds.log")
print("ready", flush=True)
sys.stdin.readline()
request = BuildRequest(toys["toy_spec"](), toys["ToySource"](), backend, toys["CPU"])
result = build_engine(request, store, toys["InProcess"]())
print(result.plan.manifest.key, result.reused, flush=True)
"""


def request(backend: ToyBackend, profile: ShapeProfile = LIMITS) -> BuildRequest:
    return BuildRequest(toy_spec(profile), ToySource(), backend, CPU)


def build(
    store: EngineStore, backend: ToyBackend, *, force: bool = False, report: Callable[[str, float], None] | None = None
) -> BuildResult:
    return build_engine(request(backend), store, InProcess(), force=force, report=report or (lambda stage, done: None))


def assert_nothing_left(store: EngineStore) -> None:
    assert list(store.plans()) == []
    staging = store.root / ".staging"
    assert not staging.is_dir() or list(staging.iterdir()) == []
    with store.lock(engine_key(toy_spec(), ToyBackend().target(CPU)), lambda: pytest.fail("the lock is held")):
        pass


def test_waiting_for_another_builder_is_told_and_can_be_cancelled(store: EngineStore) -> None:
    def cancel(stage: str, done: float) -> None:
        raise KeyboardInterrupt(stage)

    backend = ToyBackend()
    with store.lock(engine_key(toy_spec(), backend.target(CPU))):
        with pytest.raises(KeyboardInterrupt, match="another process builds it"):
            build(store, backend, report=cancel)
    assert backend.builds_done == []
    assert_nothing_left(store)


def test_a_build_is_published_with_its_verdict_and_found_the_next_time(store: EngineStore) -> None:
    backend = ToyBackend()
    first, second = build(store, backend), build(store, backend)
    assert (first.reused, second.reused) == (False, True)
    assert second.plan == first.plan
    assert len(backend.builds_done) == 1
    manifest = first.plan.manifest
    assert manifest.key == engine_key(toy_spec(), backend.target(CPU))
    assert manifest.details == {"made by": "toy"}
    assert set(manifest.files) == {ToyBackend.FILE}
    assert manifest.build_s >= 0
    assert manifest.verdict is not None
    passes(manifest.verdict, "fp32")
    assert manifest.verdict.shapes == tuple(LIMITS.corners)
    first.plan.verify()


def test_force_builds_again_and_replaces(store: EngineStore) -> None:
    backend = ToyBackend()
    first = build(store, backend)
    marker = first.plan.folder / "marker"
    marker.write_bytes(b"")
    again = build(store, backend, force=True)
    assert not again.reused
    assert len(backend.builds_done) == 2
    assert not marker.exists()
    assert [plan.manifest.key for plan in store.plans()] == [first.plan.manifest.key]


@pytest.mark.parametrize("force", [True, False])
def test_a_damaged_engine_is_built_again(store: EngineStore, force: bool) -> None:
    backend = ToyBackend()
    plan = build(store, backend).plan
    (plan.folder / "manifest.json").write_bytes(b"{}")
    again = build(store, backend, force=force)
    assert not again.reused
    again.plan.verify()
    assert store.find(plan.manifest.key) == again.plan


class CancelledError(Exception):
    """What a host raises when its user interrupts."""


def stages(store: EngineStore) -> list[tuple[str, float]]:
    heard: list[tuple[str, float]] = []
    build(store, ToyBackend(), force=True, report=lambda stage, done: heard.append((stage, done)))
    return heard


def test_the_stages_go_forward_to_the_end(store: EngineStore) -> None:
    heard = stages(store)
    assert [done for _, done in heard] == sorted(done for _, done in heard)
    assert heard[-1] == ("publish", 1.0)
    assert {"load network", "write weights", "check", "publish"} <= {stage for stage, _ in heard}


@pytest.mark.parametrize("number", range(5))
def test_a_report_that_raises_cancels_and_leaves_nothing(store: EngineStore, tmp_path: Path, number: int) -> None:
    count = len(stages(EngineStore(tmp_path / "other")))
    assert number < count - 1, "the last stage is told of an engine that is there"
    heard: list[str] = []

    def report(stage: str, done: float) -> None:
        heard.append(stage)
        if len(heard) > number:
            raise CancelledError

    with pytest.raises(CancelledError):
        build(store, ToyBackend(), report=report)
    assert len(heard) == number + 1
    assert_nothing_left(store)
    assert not build(store, ToyBackend()).reused


@pytest.mark.parametrize("error", [EngineError("No."), RuntimeError("bug"), KeyboardInterrupt(), MemoryError()])
def test_whatever_ends_a_build_nothing_is_left(store: EngineStore, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise error

    with pytest.raises(type(error)):
        build(store, ToyBackend(while_building=fail))
    assert_nothing_left(store)


def test_an_older_engine_outlives_a_rebuild_that_fails(store: EngineStore) -> None:
    plan = build(store, ToyBackend()).plan
    before = contents(plan.folder)

    def fail(folder: Path) -> None:
        raise EngineError("No.")

    with pytest.raises(EngineError):
        build(store, ToyBackend(while_building=fail), force=True)
    assert contents(plan.folder) == before
    assert store.find(plan.manifest.key) == plan


def test_a_full_disk_during_the_build_is_a_storage_error(store: EngineStore) -> None:
    def full(folder: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        build(store, ToyBackend(while_building=full))
    assert_nothing_left(store)


def test_an_engine_that_fails_the_gate_is_not_published(store: EngineStore) -> None:
    with pytest.raises(EngineError, match="^core: The fp32 engine does not give the reference's result"):
        build(store, ToyBackend(fault=lambda prediction: prediction.roll(1, 2)))
    assert_nothing_left(store)


def test_the_gate_sees_a_fault_that_one_branch_would_hide(store: EngineStore) -> None:
    one = ShapeProfile({**LIMITS.ranges, "batch": DimRange(1, 1, 2)})
    backend = ToyBackend(fault=lambda prediction: prediction.flip(0))
    with pytest.raises(EngineError, match="reference's result"):
        build_engine(request(backend, profile=one), store, InProcess())


def test_an_engine_that_cannot_run_here_is_published_without_a_verdict(store: EngineStore) -> None:
    backend = ToyBackend(available=Availability(False, "No such device here."))
    plan = build(store, backend).plan
    assert plan.manifest.verdict is None
    assert store.find(plan.manifest.key) == plan


# Room.


def test_a_build_that_needs_more_memory_than_there_is_is_refused(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_available_memory", lambda: 2 << 30)
    small, large = (BuildRequest(toy_spec(), ToySource(ToyNetwork, size), ToyBackend(), CPU) for size in (0, 1 << 30))
    store.root.mkdir()
    check_room(small, store.root)
    with pytest.raises(EngineError, match=r"core needs about 4.0 GiB of memory, found 2.0 GiB free"):
        build_engine(large, store, InProcess())
    with pytest.raises(EngineError, match=r"core needs about 11.0 GiB of memory, found 2.0 GiB free"):
        check_room(replace(large, calibration=Calibration(Path("calls.safetensors"))), store.root)
    assert_nothing_left(store)


def test_a_build_that_needs_more_of_the_gpu_than_there_is_is_refused(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "free_bytes", lambda device: 2 << 30)
    store.root.mkdir()
    source, backend = ToySource(ToyNetwork), ToyBackend()
    small, large = (BuildRequest(toy_spec(), source, backend, CPU, device_bytes=n << 29) for n in (3, 5))
    check_room(small, store.root)
    check_room(replace(large, arch="sm_86"), store.root)  # which never meets this GPU
    with pytest.raises(EngineError, match=r"core needs about 3.0 GiB of GPU memory, found 2.0 GiB free"):
        build_engine(large, store, InProcess())
    assert_nothing_left(store)


@dataclass
class SociableBackend(ToyBackend):
    """A toy whose builds may run beside others on a GPU."""

    builds_beside_others: ClassVar[bool] = True


GIB = 1 << 30


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with room for anything, which a test then makes smaller."""
    monkeypatch.setattr(build_module, "free_bytes", lambda device: 1 << 50)
    monkeypatch.setattr(build_module, "_available_memory", lambda: 1 << 50)
    monkeypatch.setattr(build_module.os, "cpu_count", lambda: 64)
    return monkeypatch


def on_gpu(*sizes: int, backend: ToyBackend | None = None, arch: str | None = None) -> list[BuildRequest]:
    """Builds that take so many GiB of the GPU, all in all."""
    backend = backend or SociableBackend()
    bytes_of = [size * GIB - BASE_DEVICE_BYTES for size in sizes]
    device = torch.device("cuda", 0)
    return [BuildRequest(toy_spec(), ToySource(), backend, device, arch, device_bytes=each) for each in bytes_of]


def test_as_many_are_built_at_once_as_the_gpu_holds(roomy: pytest.MonkeyPatch) -> None:
    requests = on_gpu(2, 8, 5, 1)
    for free, expected in ((16, 4), (15, 3), (13, 2), (12, 1), (7, 1), (0, 1)):
        roomy.setattr(build_module, "free_bytes", lambda device, free=free: free * GIB)
        assert builds_at_once(requests) == expected, free
        assert builds_at_once(requests[::-1]) == expected, "in whatever order"
    assert builds_at_once(on_gpu(8, 8, arch="sm_86")) == 2, "they never meet this GPU"


def test_as_many_are_built_at_once_as_the_memory_holds(roomy: pytest.MonkeyPatch) -> None:
    requests = on_gpu(1, 1, 1)
    needed = build_module._memory_needed(requests[0])
    for free, expected in ((3 * needed, 3), (3 * needed - 1, 2), (2 * needed - 1, 1), (0, 1)):
        roomy.setattr(build_module, "_available_memory", lambda free=free: free)
        assert builds_at_once(requests) == expected
    roomy.setattr(build_module, "_available_memory", lambda: None)
    assert builds_at_once(requests) == 3, "nobody knows the memory"


@pytest.mark.parametrize(("cores", "expected"), [(None, 1), (1, 1), (2 * CORES_PER_BUILD, 2), (64, 3)])
def test_as_many_are_built_at_once_as_cores_are_there(
    roomy: pytest.MonkeyPatch, cores: int | None, expected: int
) -> None:
    roomy.setattr(build_module.os, "cpu_count", lambda: cores)
    assert builds_at_once(on_gpu(1, 1, 1)) == expected


def test_one_that_measures_the_gpu_is_built_alone(roomy: pytest.MonkeyPatch) -> None:
    assert builds_at_once([*on_gpu(1, 1), *on_gpu(1, backend=ToyBackend())]) == 1
    assert builds_at_once([]) == 1


def test_on_a_cpu_two_are_built_at_once_whatever_the_backend(roomy: pytest.MonkeyPatch) -> None:
    assert builds_at_once([request(ToyBackend())] * 3) == BUILDERS_ON_CPU


def test_a_build_that_needs_more_disk_than_there_is_is_refused(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "_available_memory", lambda: None)
    huge = BuildRequest(toy_spec(), ToySource(ToyNetwork, 1 << 60), ToyBackend(), CPU)
    with pytest.raises(StorageError, match="core needs about .* GiB in .*, found .* GiB free"):
        build_engine(huge, store, InProcess())
    assert_nothing_left(store)


# Several processes.


def start(store: EngineStore, seconds: float) -> subprocess.Popen[str]:
    toys = str(TESTS / "helpers" / "toys.py")
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(TESTS / "conftest.py"), toys, str(store.root), str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def let_go(child: subprocess.Popen[str]) -> None:
    """Waits until the child is ready, and tells it to build."""
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("go\n")
    child.stdin.flush()


def test_of_two_processes_one_builds_and_the_other_finds_it(store: EngineStore) -> None:
    store.root.mkdir()
    children = [start(store, 0.5) for _ in range(2)]
    for child in children:
        let_go(child)
    answers = [child.communicate(timeout=60)[0].splitlines() for child in children]
    assert len((store.root / "builds.log").read_text().split()) == 1
    assert sum("building" in lines for lines in answers) == 1
    results = sorted(lines[-1] for lines in answers)
    key = engine_key(toy_spec(), ToyBackend().target(CPU))
    assert results == [f"{key} False", f"{key} True"]


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_builder_killed_in_the_middle_leaves_no_engine_and_no_lock(store: EngineStore) -> None:
    store.root.mkdir()
    child = start(store, 60)
    let_go(child)
    assert child.stdout is not None
    assert child.stdout.readline() == "building\n"
    os.kill(child.pid, signal.SIGKILL)
    child.communicate(timeout=60)
    assert list(store.plans()) == []
    left = list((store.root / ".staging").iterdir())
    assert [(path / ToyBackend.FILE).is_file() for path in left] == [True]
    assert not build(store, ToyBackend()).reused
    assert store.sweep(time.time() + 2 * 24 * 3600) == 1
    assert len(list(store.plans())) == 1

"""Building: once a key across processes, nothing visible before it passed, nothing left behind when it did not."""

import errno
import os
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
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

from ...helpers.counts import Evidence, counted
from ...helpers.toys import (
    CPU,
    LIMITS,
    Fault,
    InProcess,
    ToyBackend,
    ToySource,
    contents,
    names,
    quarantined,
    raising,
    toy_request,
    toy_spec,
)
from ...helpers.victims import heard, started, tell

GIB = 1 << 30


def build(
    store: EngineStore, backend: ToyBackend, *, force: bool = False, report: Callable[[str, float], None] | None = None
) -> BuildResult:
    return build_engine(
        toy_request(backend), store, InProcess(), force=force, report=report or (lambda stage, done: None)
    )


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


@pytest.mark.parametrize("force", [True, False])
def test_force_and_damage_have_an_engine_built_again(store: EngineStore, force: bool) -> None:
    backend = ToyBackend()
    first = build(store, backend)
    marker = first.plan.folder / "marker"
    marker.write_bytes(b"")
    if not force:
        (first.plan.folder / "manifest.json").write_bytes(b"{}")
    for count in (2, 3):
        again = build(store, backend, force=force or count == 3)
        assert not again.reused
        assert len(backend.builds_done) == count
        assert not marker.exists()
        again.plan.verify()
        assert list(store.plans()) == [again.plan]
        (again.plan.folder / "manifest.json").write_bytes(b"{}")


class CancelledError(Exception):
    """What a host raises when its user interrupts."""


def stages(store: EngineStore) -> list[tuple[str, float]]:
    heard: list[tuple[str, float]] = []
    build(store, ToyBackend(), force=True, report=lambda stage, done: heard.append((stage, done)))
    return heard


def test_the_stages_go_forward_to_the_end_and_a_report_that_raises_cancels(store: EngineStore, tmp_path: Path) -> None:
    heard = stages(EngineStore(tmp_path / "other"))
    assert [done for _, done in heard] == sorted(done for _, done in heard)
    assert heard[-1] == ("publish", 1.0)
    assert {"load network", "write weights", "check", "publish"} <= {stage for stage, _ in heard}
    for number in range(5):
        assert number < len(heard) - 1, "the last stage is told of an engine that is there"
        told: list[str] = []

        def report(stage: str, done: float, told: list[str] = told, number: int = number) -> None:
            told.append(stage)
            if len(told) > number:
                raise CancelledError

        with pytest.raises(CancelledError):
            build(store, ToyBackend(), report=report)
        assert len(told) == number + 1
        assert_nothing_left(store)
        plan = build(store, ToyBackend()).plan
        assert store.delete(plan.manifest.key)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (EngineError("No."), EngineError),
        (RuntimeError("bug"), RuntimeError),
        (KeyboardInterrupt(), KeyboardInterrupt),
        (MemoryError(), MemoryError),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), StorageError),
    ],
)
def test_whatever_ends_a_build_nothing_is_left_and_an_older_engine_outlives_it(
    store: EngineStore, error: BaseException, told: type[BaseException]
) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_bytes(b"half")
        raise error

    with pytest.raises(told, match=getattr(error, "strerror", None)):
        build(store, ToyBackend(while_building=fail))
    assert_nothing_left(store)
    plan = build(store, ToyBackend()).plan
    before = contents(plan.folder)
    with pytest.raises(told):
        build(store, ToyBackend(while_building=fail), force=True)
    assert contents(plan.folder) == before
    assert store.find(plan.manifest.key) == plan


@pytest.mark.parametrize(
    ("batch", "fault"),
    [
        pytest.param(LIMITS.ranges["batch"], lambda prediction: prediction.roll(1, 2), id="frames"),
        pytest.param(DimRange(1, 1, 2), lambda prediction: prediction.flip(0), id="branches, tuned for one"),
    ],
)
def test_an_engine_that_fails_the_gate_is_not_published(store: EngineStore, batch: DimRange, fault: Fault) -> None:
    spec = toy_spec(ShapeProfile({**LIMITS.ranges, "batch": batch}))
    with pytest.raises(EngineError, match="^core: The fp32 engine does not give the reference's result"):
        build_engine(toy_request(ToyBackend(fault=fault), spec=spec), store, InProcess())
    assert_nothing_left(store)


def test_an_engine_that_cannot_run_here_is_published_without_a_verdict(store: EngineStore) -> None:
    backend = ToyBackend(available=Availability(False, "No such device here."))
    plan = build(store, backend).plan
    assert plan.manifest.verdict is None
    assert store.find(plan.manifest.key) == plan


# Room.


def test_a_build_that_needs_more_memory_than_there_is_is_refused(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "free_host_bytes", lambda: 2 << 30)
    small, large = (toy_request(ToyBackend(), source=ToySource(size_bytes=size)) for size in (0, GIB))
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
    small, large = (toy_request(ToyBackend(), device_bytes=n << 29) for n in (3, 5))
    check_room(small, store.root)
    check_room(replace(large, arch="sm_86"), store.root)  # which never meets this GPU
    with pytest.raises(EngineError, match=r"core needs about 3.0 GiB of GPU memory, found 2.0 GiB free"):
        build_engine(large, store, InProcess())
    assert_nothing_left(store)


@dataclass
class SociableBackend(ToyBackend):
    """A toy whose builds may run beside others on a GPU."""

    builds_beside_others: ClassVar[bool] = True


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine with room for anything, which a test then makes smaller."""
    monkeypatch.setattr(build_module, "free_bytes", lambda device: 1 << 50)
    monkeypatch.setattr(build_module, "free_host_bytes", lambda: 1 << 50)
    monkeypatch.setattr(build_module.os, "cpu_count", lambda: 64)
    return monkeypatch


def on_gpu(*sizes: int, backend: ToyBackend | None = None, arch: str | None = None) -> list[BuildRequest]:
    """Builds that take so many GiB of the GPU, all in all."""
    device = torch.device("cuda", 0)
    bytes_of = [size * GIB - BASE_DEVICE_BYTES for size in sizes]
    backend = backend or SociableBackend()
    return [toy_request(backend, device=device, arch=arch, device_bytes=each) for each in bytes_of]


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
        roomy.setattr(build_module, "free_host_bytes", lambda free=free: free)
        assert builds_at_once(requests) == expected
    roomy.setattr(build_module, "free_host_bytes", lambda: None)
    assert builds_at_once(requests) == 3, "nobody knows the memory"


def test_as_many_are_built_at_once_as_cores_are_there(roomy: pytest.MonkeyPatch) -> None:
    for cores, expected in ((None, 1), (1, 1), (2 * CORES_PER_BUILD, 2), (64, 3)):
        roomy.setattr(build_module.os, "cpu_count", lambda cores=cores: cores)
        assert builds_at_once(on_gpu(1, 1, 1)) == expected, cores


def test_one_that_measures_the_gpu_is_built_alone_and_on_a_cpu_two_whatever_the_backend(
    roomy: pytest.MonkeyPatch,
) -> None:
    assert builds_at_once([*on_gpu(1, 1), *on_gpu(1, backend=ToyBackend())]) == 1
    assert builds_at_once([toy_request(ToyBackend())] * 3) == BUILDERS_ON_CPU
    assert builds_at_once([]) == 1


def test_a_build_that_needs_more_disk_than_there_is_is_refused(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "free_host_bytes", lambda: None)
    huge = toy_request(ToyBackend(), source=ToySource(size_bytes=1 << 60))
    with pytest.raises(StorageError, match="core needs about .* GiB in .*, found .* GiB free"):
        build_engine(huge, store, InProcess())
    assert_nothing_left(store)


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_builder_killed_in_the_middle_leaves_no_engine_and_no_lock(store: EngineStore) -> None:
    impatient = raising(TimeoutError("another has it"))
    key, staging = engine_key(toy_spec(), ToyBackend().target(CPU)), store.root / ".staging"
    with started("dawdler", store.root) as builder:
        assert heard(builder) == "building"
        with pytest.raises(TimeoutError, match="another has it"), store.lock(key, impatient):
            pass
    with store.lock(key, impatient):
        assert store.find(key) is None
        assert list(store.plans()) == []
    assert [(path / ToyBackend.FILE).is_file() for path in staging.iterdir()] == [True]
    assert store.sweep() == 0, "a build that young may be alive"
    assert not build(store, ToyBackend()).reused
    assert store.sweep(time.time() + 2 * 24 * 3600) == 1
    assert names(staging) == []
    assert len(list(store.plans())) == 1


PROCESSES = 8


@counted(2, 100, slow=True)
def test_of_eight_processes_one_builds_and_eight_use(store: EngineStore, count: int, evidence: Evidence) -> None:
    store.root.mkdir()
    with ExitStack() as stack:
        users = [stack.enter_context(started("user", store.root)) for _ in range(PROCESSES)]
        assert [heard(user) for user in users] == ["ready"] * PROCESSES
        for number in range(count):
            for user in users:
                tell(user, f"1.{number}")
            assert Counter(heard(user) for user in users) == {"built": 1, "found": PROCESSES - 1}
    assert len((store.root / "builds.log").read_text().split()) == count
    assert len(list(store.plans())) == count
    assert names(store.root / ".staging") == []
    assert quarantined(store) == []
    evidence("keys that 8 processes asked for at once", count, f"{count} builds, {count * PROCESSES} users")

"""Builders killed at random moments: the host lives, no engine is torn or lost, and the next build succeeds."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import CheckpointError, EngineError
from i2v_tensorrt.common.network_source import NetworkSource
from i2v_tensorrt.engine_builder.build import build_process
from i2v_tensorrt.engine_builder.build.build import BuildResult, build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store import store as store_module
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ..helpers.counts import Evidence, counted
from ..helpers.toys import CPU, FILES, InProcess, names, publish, quarantined, toy_spec
from ..helpers.victims import export_request, heard, started, tell, toy_request

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs signals")

DAY_S = 24 * 3600
PUBLISH_S = 0.05
"""About as long as a publisher takes for one engine."""


@contextmanager
def killed_after(process: BuildProcess, delay_s: float) -> Iterator[None]:
    """Kills the process's child once the delay has passed, unless the block has ended before."""

    def kill() -> None:
        if process._child is not None:
            process._child._process.kill()

    timer = threading.Timer(delay_s, kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def assert_whole(store: EngineStore, key: str) -> None:
    """The engine is there and every file of it is what its manifest says; nothing was ever put aside."""
    plan = store.find(key)
    assert plan is not None
    plan.verify()
    assert quarantined(store) == []


def assert_swept(store: EngineStore) -> None:
    """A sweep leaves nothing of dead builds."""
    store.sweep(time.time() + 2 * DAY_S)
    assert names(store.root / ".staging") == []


def seconds(build: Callable[[], BuildResult]) -> float:
    """How long a build takes here, so that kills fall all over it."""
    started_s = time.monotonic()
    assert not build().reused
    return time.monotonic() - started_s


def killed_build(request: BuildRequest, store: EngineStore, process: BuildProcess, delay_s: float) -> str | None:
    """Builds, with the child killed after the delay; the stage that this met, or None for a kill that came too late."""
    last = ["none"]
    try:
        with killed_after(process, delay_s):
            build_engine(
                request, store, process, force=True, report=lambda stage, done: last.append(stage.split(" (")[0])
            )
    except EngineError as error:
        assert "was killed" in str(error)
        return last[-1]
    return None


@counted(3, 100, slow=True)
def test_a_child_killed_at_any_moment_costs_its_build_alone(
    store: EngineStore, tiny_folder: Path, count: int, evidence: Evidence
) -> None:
    """Every other kill meets a child that has just been started, the rest one that has built before."""
    request, draw, met = export_request(tiny_folder), random.Random(count), Counter[str]()
    key = engine_key(request.spec, request.backend.target(CPU))
    with BuildProcess() as lasting:

        def build() -> BuildResult:
            return build_engine(request, store, lasting, force=True)

        durations_s = [seconds(build) for _ in ("fresh", "warm")]
        while sum(met.values()) < count:
            warm = sum(met.values()) % 2
            with BuildProcess() as fresh:
                stage = killed_build(request, store, lasting if warm else fresh, draw.uniform(0, durations_s[warm]))
            met.update([stage] if stage else [])
            assert names(store.root / ".staging") == []
            assert_whole(store, key)
            assert not build().reused
            assert_whole(store, key)
    assert_swept(store)
    stages = ", ".join(f"{number} in {stage}" for stage, number in met.items())
    evidence("builds whose child was killed", count, f"host alive, none torn, the next build succeeded ({stages})")


def kill(process: BuildProcess) -> None:
    assert process._child is not None
    process._child._process.kill()
    process._child._process.wait()


def request_for(checkpoint: Path, network: str) -> BuildRequest:
    """A build of one of the networks of `victims`."""
    return replace(export_request(checkpoint), source=NetworkSource("tests.helpers.victims", network, {}))


@pytest.mark.parametrize("is_told", [True, False])
def test_a_child_that_died_between_builds_is_replaced(
    store: EngineStore, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, is_told: bool
) -> None:
    """Even where the system has not told of it yet: no fault of the next build's."""
    with BuildProcess() as process:
        assert not build_engine(export_request(tiny_folder), store, process, force=True).reused
        killed = process._child
        kill(process)
        if not is_told:
            monkeypatch.setattr(build_process._Child, "is_alive", True)
        assert not build_engine(export_request(tiny_folder), store, process, force=True).reused
        assert process._child is not killed


def test_a_child_that_met_an_error_is_not_used_again(store: EngineStore, tiny_folder: Path) -> None:
    """A library's error, such as CUDA's, may have left it unfit for any further build."""
    with BuildProcess() as process:
        build_engine(export_request(tiny_folder), store, process)
        unfit = process._child
        assert unfit is not None
        with pytest.raises(CheckpointError, match="no such network"):
            build_engine(request_for(tiny_folder, "no_network"), store, process, force=True)
        assert not unfit.is_alive
        assert not build_engine(export_request(tiny_folder), store, process, force=True).reused


def test_a_child_that_dies_at_its_first_request_is_not_asked_again(
    store: EngineStore, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where none can start, the next one cannot either."""
    child, starts = tmp_path / "child.py", tmp_path / "starts"
    child.write_text(f"with open({str(starts)!r}, 'a') as stream:\n    stream.write('.')\n")
    monkeypatch.setattr(build_process, "CHILD", child)
    with BuildProcess() as process, pytest.raises(EngineError, match="ended without an answer"):
        build_engine(export_request(tiny_folder), store, process)
    assert starts.read_text() == "."


def test_a_child_that_ends_by_itself_is_heard_out(store: EngineStore, tiny_folder: Path) -> None:
    """Its own exit status is told, and not the signal that would end it a moment later."""
    with BuildProcess() as process, pytest.raises(EngineError) as caught:
        build_engine(request_for(tiny_folder, "broken_network"), store, process)
    assert "ended without an answer (exit status 1)" in str(caught.value)
    assert "its last words: ZeroDivisionError: not foreseen" in str(caught.value)


def die_before_the_second_rename(store: EngineStore, folder: Path) -> None:
    """A publisher whose process ends once the old engine has left its name and before the new one has it."""
    rename = Path.rename

    def rename_or_die(path: Path, target: Path) -> Path:
        if target == folder:
            os._exit(0)
        return rename(path, target)

    pid = os.fork()
    if pid == 0:
        pytest.MonkeyPatch().setattr(Path, "rename", rename_or_die)
        publish(store, toy_spec(), FILES)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_engine_that_a_dead_publisher_had_set_aside_comes_back(store: EngineStore, plan: Plan) -> None:
    die_before_the_second_rename(store, plan.folder)
    assert not plan.folder.exists()
    with store.lock(plan.manifest.key):
        store.sweep()
        assert not plan.folder.exists(), "who holds the key may be about to publish"
    store.sweep()
    assert_whole(store, plan.manifest.key)
    die_before_the_second_rename(store, plan.folder)
    publish(store, toy_spec(), {"network.bin": b"newer"})
    assert_swept(store)
    found = store.find(plan.manifest.key)
    assert found is not None
    assert found.read("network.bin") == b"newer", "an engine that was set aside replaces no newer one"


def test_a_deleted_engine_does_not_come_back(store: EngineStore, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module.quarantine, "remove", lambda path: None)
    assert store.delete(plan.manifest.key)
    assert len(names(store.root / ".staging")) == 1
    store.sweep()
    assert list(store.plans()) == []


def is_gone(pid: int) -> bool:
    """Whether a process has ended, reaped or not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state in "ZX"


def assert_end(processes: list[int]) -> None:
    """They do so by themselves, in time; otherwise they are ended here."""
    deadline = time.monotonic() + 5
    try:
        while not all(map(is_gone, processes)):
            assert time.monotonic() < deadline, "a child outlived its host"
            time.sleep(0.02)
    finally:
        for pid in processes:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def helper_of(store: EngineStore) -> int:
    """The process that `helped_network` has started."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for path in (store.root / ".logs").glob("*.log"):
            words = path.read_text().split()
            if words and words[0].isdigit():
                return int(words[0])
        time.sleep(0.02)
    raise AssertionError("no helper was started")


@needs_proc
@pytest.mark.parametrize("network", ["stuck_network", "helped_network"])
def test_a_child_in_a_silent_stage_ends_with_its_host(store: EngineStore, tiny_folder: Path, network: str) -> None:
    with started("host", store.root, tiny_folder) as host:
        assert heard(host) == "ready"
        tell(host, network)
        processes = [int(heard(host))]
        processes += [helper_of(store)] if network == "helped_network" else []
    assert_end(processes)


@needs_proc
@pytest.mark.parametrize("end", ["cancelled", "killed"])
def test_what_a_build_has_started_ends_with_it(store: EngineStore, tiny_folder: Path, end: str) -> None:
    helpers: list[int] = []
    with BuildProcess() as process:

        def report(stage: str, done: float) -> None:
            if stage == "load network" and not helpers:
                helpers.append(helper_of(store))
                if end == "cancelled":
                    raise KeyboardInterrupt
                kill(process)

        with pytest.raises((KeyboardInterrupt, EngineError)):
            build_engine(request_for(tiny_folder, "helped_network"), store, process, report=report)
    assert_end(helpers)


@needs_proc
@counted(1, 20, slow=True)
def test_a_host_killed_at_any_moment_takes_its_child_along(
    store: EngineStore, tiny_folder: Path, count: int, evidence: Evidence
) -> None:
    request, draw = export_request(tiny_folder), random.Random(count)
    key = engine_key(request.spec, request.backend.target(CPU))
    for _ in range(count):
        with started("host", store.root, tiny_folder) as host:
            assert heard(host) == "ready"
            tell(host, "export")
            child = int(heard(host))
            time.sleep(draw.uniform(0, 2))
        assert_end([child])
        assert all(plan.verify() is None for plan in store.plans())
        assert quarantined(store) == []
        store.delete(key)
    with BuildProcess() as process:
        build_engine(request, store, process)
    assert_whole(store, key)
    assert_swept(store)
    evidence("hosts killed while their child builds", count, "the child ended, none torn, the next build succeeded")


@counted(30, 1000)
def test_a_publisher_killed_at_any_moment_tears_and_loses_nothing(
    store: EngineStore, count: int, evidence: Evidence
) -> None:
    """The engine that was there, or the one that replaces it: one of the two is there after every kill."""
    request, draw = toy_request(lambda folder: None, "1.0"), random.Random(count)
    key = build_engine(request, store, InProcess()).plan.manifest.key
    with started("publisher", store.root) as publisher:
        assert heard(publisher) == "ready"
        for _ in range(count):
            tell(publisher, "go")
            pid = int(heard(publisher))
            time.sleep(draw.uniform(0, PUBLISH_S))
            os.kill(pid, signal.SIGKILL)
            assert heard(publisher) == "gone"
            assert build_engine(request, store, InProcess()).reused
            assert_whole(store, key)
    half_done = len(names(store.root / ".staging"))
    assert half_done > 0, "no kill met a build"
    assert_swept(store)
    assert not build_engine(request, store, InProcess(), force=True).reused
    evidence("publishers killed", count, f"none torn, none lost; {half_done} half-done builds, all swept")

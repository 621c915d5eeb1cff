"""Engines that a clip went without are built while there is nothing to run, and used from then on."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.backends.base import Report
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest, Compiled
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.engines import messages, parallel_builds
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.idle_builds import IdleBuilds
from i2v_tensorrt.runtime.engines.policy import LATER
from i2v_tensorrt.runtime.tools import doctor
from i2v_tensorrt.runtime.tools.doctor import diagnose

from ...helpers.interrupts import PATIENCE_S, wait_for
from ...helpers.toy_host import AsOnAGpu, Idle, Room, ToyHost
from ...helpers.toy_model import BROKE, CHUNKED, ODD, SIZES, MakeSet, ToyModel, breaking, built, keys, mend, run
from ...helpers.toys import CPU, InProcess, ToyBackend, names

BOTH = ["core", "vae_decoder"]
SHORT = "Building core needs about 9.0 GiB of GPU memory, found 1.0 GiB free: close other programs."


def test_a_clip_runs_eager_now_and_is_told_why(idle: Idle) -> None:
    engines = idle.engines()
    assert engines.on_missing == LATER
    assert engines.expected("core", SIZES).name == "eager"
    for _ in range(2):
        assert run(engines) == "eager"
        assert engines.take_notes() == [messages.LATER], "at every clip"
    assert idle.toy.builds_done == []


def test_an_engine_is_wanted_once_whoever_lacks_it(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "BACKENDS", registry.BACKENDS)
    assert "engines" not in [row[0] for row in diagnose(CPU, idle.builds.line).table.rows]
    for engines in (idle.engines(), idle.engines()):
        engines.prepare(CHUNKED)
        run(engines)
        run(engines, CHUNKED, "vae_decoder")
    assert idle.builds.line == "2 engines to build: waiting for the queue to be empty"
    assert ("engines", "", idle.builds.line) in diagnose(CPU, idle.builds.line).table.rows, "the doctor tells it"


def test_what_is_built_meanwhile_serves_the_very_next_call(idle: Idle) -> None:
    engines = idle.engines()
    engines.prepare(CHUNKED)
    assert run(engines) == "eager"
    idle.build()
    assert built(idle.toy) == BOTH
    assert len(idle.host.freed) == 1
    engines.take_notes()
    assert [run(engines), run(engines, CHUNKED, "vae_decoder")] == ["toy", "toy"]
    assert engines.take_notes() == []
    assert engines.summary().splitlines() == ["toy, fp32 on cpu", "engines: 2 of 2"]


def test_nothing_is_built_before_the_host_was_calm_and_the_loader_says_so(idle: Idle) -> None:
    engines = idle.engines()
    run(engines)
    asked = idle.host.asked
    wait_for(lambda: idle.host.asked > asked + 3)
    assert idle.toy.builds_done == []
    told = ["toy, fp32 on cpu", "engines: 0 of 2", "the rest is built when the queue is empty"]
    assert engines.summary().splitlines() == told


class Slow(InProcess):
    """A build that lasts until it is cancelled or allowed to end, and tells as often as a child does."""

    begun, allowed = threading.Event(), threading.Event()

    def compile(self, request: BuildRequest, folder: Path, log_path: Path, report: Report) -> Compiled:
        (folder / "half").write_bytes(b"written")
        self.begun.set()
        while not self.allowed.wait(0.02):
            report("compile", 0.3)
        (folder / "half").unlink()
        return super().compile(request, folder, log_path, report)


@pytest.fixture
def slow(idle: Idle, monkeypatch: pytest.MonkeyPatch) -> type[Slow]:
    monkeypatch.setattr(parallel_builds, "BuildProcess", Slow)
    Slow.begun.clear()
    Slow.allowed.clear()
    return Slow


def test_a_prompt_cancels_the_build_which_is_gone_on_with_later(idle: Idle, slow: type[Slow]) -> None:
    engines = idle.engines()
    run(engines)
    idle.host.idle = True
    wait_for(slow.begun.is_set)
    staging = engines.store.root / ".staging"
    wait_for(lambda: idle.builds.line == "1 engine to build: compile 30%")
    assert names(staging) != []
    idle.host.idle = False
    wait_for(lambda: names(staging) == [])
    wait_for(lambda: idle.builds.line == "1 engine to build: waiting for the queue to be empty")
    assert keys(engines) == []
    assert run(engines) == "eager"
    slow.allowed.set()
    idle.build()
    assert run(engines) == "toy"
    assert len(idle.toy.builds_done) == 1


def test_the_child_of_a_cancelled_build_is_ended(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the backends that there are, in the toy's place."""
    children: list[Any] = []

    class Watched(BuildProcess):
        def _living(self) -> Any:
            children.append(super()._living())
            return children[-1]

    monkeypatch.setattr(parallel_builds, "BuildProcess", Watched)
    host = ToyHost()
    idle = Idle(host, IdleBuilds(host, 0.05), ToyBackend(), tmp_path)
    engines = idle.engines(open_model(tiny_folder), backend="onnxruntime", shapes="exact")
    assert engines.runner("text_encoder", {"batch": 2}).backend == "eager"
    host.idle = True
    wait_for(lambda: children)
    host.idle = False
    wait_for(lambda: not children[0].is_alive)
    wait_for(lambda: names(tmp_path / ".staging") == [])
    assert keys(engines) == []
    idle.build()
    assert engines.runner("text_encoder", {"batch": 2}).backend == "onnxruntime"


ENDING = """
import threading, time
from i2v_tensorrt.runtime.engines.parallel_builds import build_in_parallel

begun = threading.Event()

def task(process, report):
    begun.set()
    time.sleep({patience})

build = lambda: build_in_parallel([task], 1, lambda stage, done: None)
threading.Thread(target=build, daemon=True).start()
begun.wait()
"""


def test_a_server_that_ends_waits_for_no_build() -> None:
    start = f"import runpy; runpy.run_path({str(Path(__file__).parents[2] / 'conftest.py')!r})\n"
    program = start + ENDING.format(patience=PATIENCE_S)
    subprocess.run([sys.executable, "-c", program], check=True, timeout=PATIENCE_S / 2)


@pytest.mark.parametrize("words", [BROKE, SHORT], ids=["broken", "short of memory on an empty device"])
def test_a_build_that_fails_is_not_tried_again_and_the_next_one_is_built(idle: Idle, words: str) -> None:
    tries = breaking(idle.toy, words)
    engines = idle.engines()
    run(engines)
    idle.build()
    assert (len(idle.host.freed), len(tries)) == (1, 1)
    mend(idle.toy)
    engines.take_notes()
    for again in (engines, idle.engines()):
        assert run(again) == "eager"
        (note,) = again.take_notes()
        assert note.startswith(f"core runs in eager PyTorch, which is slower. {words} It failed before")
    assert idle.builds.line == ""
    assert run(engines, CHUNKED, "vae_decoder") == "eager"
    idle.build()
    assert run(engines, CHUNKED, "vae_decoder") == "toy"
    assert len(tries) == 1


def test_memory_that_a_prompt_has_taken_is_no_failure_of_the_build(idle: Idle) -> None:
    asked: list[int] = []

    def fail(folder: Path) -> None:
        idle.host.idle = False
        asked.append(idle.host.asked)
        raise EngineError(SHORT)

    idle.toy.while_building = fail
    engines = idle.engines()
    run(engines)
    idle.host.idle = True
    # The report asks once more, and so does the build that failed; whoever asks then waits for calm.
    wait_for(lambda: bool(asked) and idle.host.asked > asked[0] + 2)
    wait_for(lambda: idle.builds.line == "1 engine to build: waiting for the queue to be empty")
    assert idle.builds.generation == 0
    mend(idle.toy)
    idle.build()
    assert run(engines) == "toy"


def test_a_fault_of_ours_in_one_build_takes_no_other_along(idle: Idle) -> None:
    def fail(folder: Path) -> None:
        if not idle.toy.builds_done:
            idle.toy.builds_done.append(None)  # type: ignore[arg-type]
            raise ZeroDivisionError("a fault")

    idle.toy.while_building = fail
    engines = idle.engines()
    engines.prepare(CHUNKED)
    idle.build()
    mend(idle.toy)
    assert sorted([run(engines), run(engines, CHUNKED, "vae_decoder")]) == ["eager", "toy"]
    assert idle.builds.line == "", "a fault comes again"


def test_a_host_that_fails_ends_neither_the_thread_nor_what_comes_later(
    idle: Idle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(needed_bytes: int) -> None:
        raise RuntimeError("CUDA error")

    engines = idle.engines()
    with monkeypatch.context() as patch:
        patch.setattr(idle.host, "free_device", fail)
        run(engines)
        idle.build()
    run(idle.engines())
    idle.build()
    assert run(engines) == "toy"


def test_several_are_built_at_a_time(idle: Idle) -> None:
    both = threading.Barrier(2, timeout=PATIENCE_S)
    idle.toy.while_building = lambda folder: (both.wait(), None)[1]
    engines = idle.engines()
    engines.prepare(CHUNKED)
    idle.build()
    assert idle.builds.generation == len(idle.toy.builds_done) == 2


def test_eager_that_does_not_fit_is_built_at_once(idle: Idle) -> None:
    room = Room(1000 * SIZES["frames"] - 1)
    engines = idle.engines(memory_manager=room)
    assert engines.expected("core", SIZES).name == "toy"
    engines.prepare(CHUNKED)
    assert room.cleared == 1
    assert built(idle.toy) == BOTH
    assert (run(engines), idle.builds.line) == ("toy", "")
    assert run(idle.engines(memory_manager=Room(1000 * SIZES["frames"])), ODD) == "eager"


@pytest.mark.parametrize(("saved_s", "pays"), [(299.0, False), (301.0, True)])
def test_an_engine_is_built_at_once_where_clips_save_more_than_it_takes(idle: Idle, saved_s: float, pays: bool) -> None:
    engines = idle.engines()
    run(engines)
    assert engines.hasten("core", SIZES, saved_s) is pays, "a build is taken to need 300 s"
    assert run(engines) == ("toy" if pays else "eager")
    assert len(idle.toy.builds_done) == pays
    assert not engines.hasten("core", SIZES, saved_s), "it is there, or still not worth it"


def test_a_decoder_that_fits_by_single_frames_holds_up_no_clip(idle: Idle) -> None:
    class ByChunk(ToyModel):
        def scratch_bytes(
            self, component: str, sizes: Mapping[str, int], precision: str, backend: str = "eager"
        ) -> int:
            return 1000 * sizes["chunk"] if component == "vae_decoder" else 0

    engines = idle.engines(ByChunk(), Room(1000))
    engines.prepare(CHUNKED)
    assert idle.toy.builds_done == []
    assert run(engines, {**CHUNKED, "chunk": 1}, "vae_decoder") == "eager"


def test_what_a_build_took_before_is_what_it_is_taken_to_need(idle: Idle, make: MakeSet) -> None:
    make(shapes="exact", precision="fp32").build("core", SIZES, InProcess())
    wider = {**SIZES, "latent_width": 8}
    engines = idle.engines()
    run(engines, wider)
    assert engines.hasten("core", wider, 200.0), "the toy took far less"
    assert run(engines, wider) == "toy"


def test_clips_that_wait_are_those_behind_this_one_and_no_other_policy_heeds_them(idle: Idle, make: MakeSet) -> None:
    for idle.host.prompts, behind in ((4, 3), (0, 0)):
        assert idle.engines().waiting_clips == behind
    engines = make(on_missing="eager")
    run(engines)
    assert not engines.hasten("core", SIZES, 1e9)
    assert engines.waiting_clips == 0


def test_without_anybody_who_builds_later_auto_builds_at_once(idle: Idle, tmp_path: Path) -> None:
    policy = AsOnAGpu(on_missing="auto")
    engines = EngineSet(ToyModel(), EngineStore(tmp_path), policy, CPU)  # pyright: ignore[reportArgumentType]
    assert engines.on_missing == "build"
    assert run(engines) == "toy"


def test_nothing_is_promised_while_building_is_switched_off(idle: Idle) -> None:
    idle.host.on, idle.host.idle = False, True
    engines = idle.engines()
    assert engines.summary().splitlines()[-1] == "the rest runs eager"
    assert run(engines) == "eager"
    assert engines.take_notes() == [messages.SWITCHED_OFF]
    assert not engines.hasten("core", SIZES, 1e9), "nor is a clip held up"
    assert (run(engines), idle.toy.builds_done) == ("eager", [])
    assert idle.builds.line == "1 engine to build: switched off in the settings"
    idle.host.on = True
    wait_for(lambda: idle.builds.line == "")
    assert run(engines) == "toy"


@pytest.mark.parametrize(
    ("policy", "sizes", "told"),
    [
        ({"precision": "int8"}, SIZES, "There is no int8 engine for core, and its scales are taken from pictures"),
        ({}, ODD, "core runs in eager PyTorch, which is slower. No engine can serve this size"),
    ],
    ids=["int8", "a size that no preset serves"],
)
def test_what_cannot_be_built_later_is_not_promised(
    idle: Idle, policy: dict[str, str], sizes: dict[str, int], told: str
) -> None:
    engines = idle.engines(**policy)
    assert engines.runner("core", sizes).backend == "eager"
    (note,) = engines.take_notes()
    assert told in note
    assert idle.builds.line == ""

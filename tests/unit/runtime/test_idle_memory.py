"""Builds that lack memory while nothing runs: with nothing else on the machine, and because a prompt has come."""

from __future__ import annotations

from pathlib import Path

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.runtime.engines.idle_builds import IdleBuilds

from ...helpers.toy_host import ToyHost, let_build, wait_for
from ...helpers.toy_model import MakeSet, run
from ...helpers.toys import ToyBackend

SHORT = "Building core needs about 9.0 GiB of GPU memory, found 1.0 GiB free: close other programs."


def test_memory_that_does_not_do_on_an_empty_device_is_not_tried_at_every_clip(
    later: MakeSet, toy: ToyBackend, builds: IdleBuilds, host: ToyHost
) -> None:
    tries: list[Path] = []

    def fail(folder: Path) -> None:
        tries.append(folder)
        raise EngineError(SHORT)

    toy.while_building = fail
    run(later())
    let_build(host, builds)
    engines = later()
    assert run(engines) == "eager"
    (note,) = engines.take_notes()
    assert note.startswith(f"core runs in eager PyTorch, which is slower. {SHORT} It failed before")
    assert builds.line == ""
    assert (len(host.freed), len(tries)) == (1, 1)


def test_memory_that_a_prompt_has_taken_is_no_failure_of_the_build(
    later: MakeSet, toy: ToyBackend, builds: IdleBuilds, host: ToyHost
) -> None:
    asked: list[int] = []

    def fail(folder: Path) -> None:
        host.idle = False
        asked.append(host.asked)
        raise EngineError(SHORT)

    toy.while_building = fail
    engines = later()
    run(engines)
    host.idle = True
    # The report asks once more, and so does the build that failed; whoever asks then waits for calm.
    wait_for(lambda: bool(asked) and host.asked > asked[0] + 2)
    wait_for(lambda: builds.line == "1 engine to build: waiting for the queue to be empty")
    assert builds.generation == 0
    toy.while_building = lambda folder: None
    let_build(host, builds)
    assert run(engines) == "toy"

"""Engines that a clip lacks are built ahead of it, and the device makes room for nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.runtime.engines.engine_set import EngineSet, LoadInPlace
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toy_model import ODD, SIZES, MakeSet, ToyModel, run
from ...helpers.toys import CPU, ToyBackend


def test_preparing_builds_all_that_a_clip_lacks_and_nothing_else(make: MakeSet, toy: ToyBackend) -> None:
    engines = make()
    sizes = {**SIZES, "chunk": 2}
    engines.prepare(sizes)
    assert sorted(spec.network.component for spec in toy.builds_done) == ["core", "vae_decoder"]
    engines.prepare(sizes)
    assert run(engines) == "toy"
    assert len(toy.builds_done) == 2


@pytest.mark.parametrize("policy", [{"on_missing": "eager"}, {"on_missing": "stop"}, {"backend": "eager"}])
def test_preparing_builds_nothing_where_that_is_not_the_policy(
    make: MakeSet, toy: ToyBackend, policy: dict[str, str]
) -> None:
    engines = make(**policy)
    engines.prepare({**SIZES, "chunk": 2})
    assert toy.builds_done == []
    assert engines.take_notes() == []


def test_preparing_leaves_what_fails_for_later(make: MakeSet, toy: ToyBackend) -> None:
    def fail(folder: Path) -> None:
        raise EngineError("The toy broke.")

    toy.while_building = fail
    engines = make()
    engines.prepare({**SIZES, "chunk": 2})
    assert run(engines) == "eager"
    assert engines.take_notes() == ["core runs in eager PyTorch, which is slower. The toy broke."]


def test_what_cannot_be_built_makes_nobody_leave_the_device(toy: ToyBackend, tmp_path: Path) -> None:
    """Room is made once for builds that fail, and not at all for sizes that no engine can serve."""

    def fail(folder: Path) -> None:
        raise EngineError("The toy broke.")

    class Counting(LoadInPlace):
        cleared = 0

        def clear(self) -> None:
            self.cleared += 1

    memory_manager = Counting()
    engines = EngineSet(ToyModel(), EngineStore(tmp_path), EnginePolicy(), CPU, memory_manager)
    engines.prepare({**ODD, "chunk": 10_000})
    assert memory_manager.cleared == 0
    toy.while_building = fail
    for _ in range(3):
        engines.prepare({**SIZES, "chunk": 2})
    assert memory_manager.cleared == 1


@pytest.mark.parametrize("on_missing", ["eager", "build"])
def test_room_is_made_only_where_a_build_follows(toy: ToyBackend, tmp_path: Path, on_missing: str) -> None:
    class Counting(LoadInPlace):
        cleared = 0

        def clear(self) -> None:
            self.cleared += 1

    memory_manager = Counting()
    engines = EngineSet(ToyModel(), EngineStore(tmp_path), EnginePolicy(on_missing=on_missing), CPU, memory_manager)
    run(engines, ODD)
    run(engines)
    assert memory_manager.cleared == len(toy.builds_done) == (on_missing == "build")

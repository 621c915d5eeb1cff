"""Calls of somebody else's network through engines of toys: found, built, compared, refused, let go."""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch
from weakref import ref

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, MissingEngineError
from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.backends.base import Runner, no_collection
from i2v_tensorrt.engine_builder.build.build import quiet
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace, MemoryManager
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.external.compiled_network import MAX_KINDS, CompiledNetwork, Tally
from i2v_tensorrt.runtime.external.network_call import read_call

from ...helpers.toy_calls import SIZE, Borrowing, Owner, Scene
from ...helpers.toy_model import BROKE, breaking, mend
from ...helpers.toys import Fault, ToyBackend

MakeScene = Callable[..., Scene]


@pytest.fixture
def make_scene(toy: ToyBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeScene:
    """Makes an owner's network over one store; keywords are a policy's, or make the toy another."""

    def make(borrows: bool = True, memory_manager: MemoryManager | None = None, **policy: Any) -> Scene:
        chosen = Borrowing() if borrows else toy
        monkeypatch.setitem(registry.BACKENDS, "toy", chosen)
        owner, store = Owner(), EngineStore(tmp_path / "engines")
        wanted = EnginePolicy(**{"shapes": "exact", **policy})
        return Scene(owner, chosen, CompiledNetwork(owner, store, wanted, memory_manager or LoadInPlace(), quiet))

    return make


def test_the_first_call_is_made_by_both_and_the_rest_by_the_engine(make_scene: MakeScene) -> None:
    scene = make_scene()
    assert scene.run(5) == 1
    assert scene.network.tally == Tally(engine=4, compared=1)
    assert list(scene.network.backends()) == ["toy"]
    assert len(scene.toy.builds_done) == 1
    (note,) = scene.network.take_notes()
    assert note.startswith("ToyNetwork engine built in ")
    assert scene.network.take_notes() == []
    again = make_scene()
    again.run(2)
    assert again.toy.builds_done == [] and again.network.tally.engine == 1, "one that is there is not built"


def test_other_weights_are_compared_again_by_the_same_engine(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.run(2)
    scene.owner.network.weight.mul_(-1.5)
    scene.owner.weights = "with a LoRA"
    assert scene.run(3) == 1
    scene.owner.network.weight.div_(-1.5)
    scene.owner.weights = "as loaded"
    assert scene.run(3) == 0, "what was compared once needs no more"
    assert len(scene.toy.builds_done) == 1
    assert scene.owner.digests == 0


def test_an_engine_that_holds_weights_is_one_for_each(make_scene: MakeScene) -> None:
    scene = make_scene(borrows=False)
    assert scene.run(2) == 1
    before = {plan.manifest.spec.network.weights_sha256 for plan in scene.network._store.plans()}
    scene.owner.weights = "with a LoRA"
    assert scene.run(2) == 1
    after = {plan.manifest.spec.network.weights_sha256 for plan in scene.network._store.plans()}
    assert (before, after) == ({"as loaded"}, {"as loaded", "with a LoRA"})
    assert len(scene.toy.builds_done) == 2


def test_other_constants_are_another_engine_and_some_at_every_call_are_told(make_scene: MakeScene) -> None:
    scene = make_scene()
    for frames in (3, 4):
        scene.run(2, frames=frames)
    assert len(scene.toy.builds_done) == 2
    scene = make_scene(on_missing="eager")
    for number in range(MAX_KINDS + 1):
        scene.run(frames=number)
    told = f"The network is called in more than {MAX_KINDS} ways, of which each needs an engine."
    assert told in scene.network.take_notes()


@pytest.mark.parametrize(
    ("shapes", "other", "built"),
    [
        ("exact", (1, 4, 3, 16, 8), 2),
        ("range", (1, 4, 3, 16, 8), 1),
        ("range", (1, 4, 3, 8, 10), 2),  # between the steps
    ],
)
def test_the_policy_says_what_one_engine_serves(
    make_scene: MakeScene, shapes: str, other: tuple[int, ...], built: int
) -> None:
    scene = make_scene(shapes=shapes)
    assert scene.run(2) == 1
    assert scene.run(2, other) == 1, "each size is compared once"
    assert len(scene.toy.builds_done) == built


def test_a_network_that_does_not_compile_for_a_range_has_an_engine_for_each_size(make_scene: MakeScene) -> None:
    scene = make_scene(shapes="range")

    def refuse_ranges(folder: Path) -> None:
        if not scene.toy.builds_done and not refused:
            refused.append(folder)
            raise EngineError("Constraints violated.")

    refused: list[Path] = []
    scene.toy.while_building = refuse_ranges
    assert scene.run(2) == 1
    first, built = scene.network.take_notes()
    assert first == "Each size has its own engine. Constraints violated."
    assert built.startswith("ToyNetwork engine built in ")
    (spec,) = scene.toy.builds_done
    assert all(limits.min == limits.max for limits in spec.profile.ranges.values())


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (lambda prediction: prediction + 0.05, "The fp32 engine does not give the reference's result"),
        (lambda prediction: prediction[:, :1], "Expected a result of [1, 4, 3, 8, 8], found [1, 1, 3, 8, 8]."),
    ],
    ids=["value", "shape"],
)
def test_an_engine_that_gives_something_else_is_not_used(make_scene: MakeScene, fault: Fault, told: str) -> None:
    scene = make_scene()
    scene.run(1)
    scene.owner.weights = "others"
    scene.toy.fault = fault
    assert scene.run(3) == 3
    (why,) = [note for note in scene.network.take_notes() if "built" not in note]
    assert why.startswith(f"The network runs as it is: {told}")
    assert scene.network.tally == Tally(compared=2, original=2)


def failing(scene: Scene, error: BaseException) -> list[int]:
    """Has every call of the scene's engines fail; how often one was made."""
    failures: list[int] = []

    def fail(prediction: torch.Tensor) -> torch.Tensor:
        failures.append(1)
        raise error

    scene.toy.fault = fail
    return failures


def test_an_engine_that_fails_later_is_not_used_again(make_scene: MakeScene) -> None:
    scene = make_scene()
    scene.run(2)
    failures = failing(scene, EngineError("The toy is broken."))
    assert scene.run(3) == 3
    assert len(failures) == 1
    assert "The toy is broken." in scene.network.take_notes()


def test_a_failed_build_is_known_to_who_has_another_way(make_scene: MakeScene) -> None:
    call = read_call({"sample": torch.zeros(SIZE), "strength": torch.ones(1, 4)})
    scene = make_scene()
    assert scene.network.failure(call) is None, "nothing was tried"
    scene.run(1)
    assert scene.network.failure(call) is None, "there is an engine"
    breaking(scene.toy)
    scene.run(1, (1, 4, 3, 8, 16))
    assert (scene.network.failure(call) or "").startswith(BROKE)


class Watched(LoadInPlace):
    """Remembers that it was asked to let go of everything, and at which load memory ran out."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.fails = False

    def hold(self, runner: Runner, scratch_bytes: int) -> str | None:
        if self.fails and runner.backend == "toy":
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return super().hold(runner, scratch_bytes)

    def free_memory(self, needed_bytes: int, *, encoders: bool) -> str | None:
        self.asked.append((needed_bytes, encoders))
        return None


OUT_OF_MEMORY = "The network runs as it is: memory ran out for its engine."


@pytest.mark.parametrize("compared", [True, False], ids=["once compared", "in the comparison"])
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_memory_that_runs_out_in_an_engine_ends_no_run(make_scene: MakeScene, compared: bool, error: Exception) -> None:
    memory_manager = Watched()
    scene = make_scene(memory_manager=memory_manager)
    scene.run(2 if compared else 0)
    scene.network.take_notes()
    tries = failing(scene, error)
    assert scene.run(3) == 3, "the network itself runs, once a call"
    assert len(tries) == 1, "no other call of the run is tried"
    assert memory_manager.asked == [(sys.maxsize, True)]
    assert not any(runner.is_loaded for kind in scene.network._kinds.values() for runner, *_ in kind.compared)
    assert [note for note in scene.network.take_notes() if "built" not in note] == [OUT_OF_MEMORY]
    scene.toy.fault = lambda prediction: prediction
    assert scene.run(3) == (0 if compared else 1), "the next run may have the memory"


def test_memory_that_runs_out_while_an_engine_is_loaded_or_in_the_network_itself(make_scene: MakeScene) -> None:
    """The first ends no run, the second is no fault of an engine."""
    memory_manager = Watched()
    scene = make_scene(memory_manager=memory_manager)
    scene.run(2)
    scene.network.take_notes()
    memory_manager.fails = True
    assert scene.run(2) == 2
    assert scene.network.take_notes() == [OUT_OF_MEMORY]
    assert scene.network.tally == Tally(engine=1, compared=1, original=2)

    memory_manager.fails = False
    memory_manager.asked.clear()
    scene.owner.weights = "others"

    def original() -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        scene.network.run(read_call({"sample": torch.zeros(SIZE), "strength": torch.ones(1, 4)}), original)
    assert scene.network.take_notes() == [] and memory_manager.asked == []


def test_without_an_engine_the_network_runs_or_the_run_stops(make_scene: MakeScene) -> None:
    scene = make_scene(on_missing="eager")
    assert scene.run(3) == 3
    (warning,) = scene.network.take_notes()
    assert warning.startswith("network runs in eager PyTorch, which is slower. There is no engine for network in ")
    with pytest.raises(MissingEngineError):
        make_scene(on_missing="stop").run()
    scene = make_scene(backend="eager")
    assert scene.run(3) == 3
    assert scene.network.take_notes() == [] and scene.owner.digests == 0, "eager asks for nothing"


@pytest.mark.parametrize("result", [(torch.zeros(1), None), {"a": torch.zeros(1)}, None])
def test_a_result_that_is_no_tensor_is_handed_on(make_scene: MakeScene, result: object) -> None:
    scene = make_scene()
    call = read_call({"sample": torch.zeros(SIZE), "strength": torch.ones(1, 4)})
    assert scene.network.run(call, lambda: result) is result
    (note,) = scene.network.take_notes()
    assert note.startswith("An engine gives tensors, but the network gives a ")


def test_an_interrupt_goes_through(make_scene: MakeScene) -> None:
    scene = make_scene()
    breaking(scene.toy, kind=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        scene.run()
    mend(scene.toy)
    assert scene.run(2) == 1


def test_between_runs_nothing_is_held_and_weights_go_with_the_last_who_uses_them(make_scene: MakeScene) -> None:
    """They are somebody else's, who may have sent them away long before Python's collector comes."""
    scene = make_scene()
    scene.run(2)
    runners = [runner for kind in scene.network._kinds.values() for runner, *_ in kind.compared]
    assert all(runner.is_loaded for runner in runners) and runners
    scene.network.unload()
    assert not any(runner.is_loaded for runner in runners)
    assert scene.run(2) == 0
    del runners
    network = ref(scene.owner.network)
    gc.collect()
    with no_collection():
        del scene
        assert network() is None


def test_threads_take_turns(make_scene: MakeScene) -> None:
    """As the core's MultiGPU CFG Split has them, one for each device."""
    scene, inside, most = make_scene(), [0], [0]
    scene.run(2)
    (kind,) = scene.network._kinds.values()
    (runner,) = {runner for runner, *_ in kind.compared}
    calls = type(runner)._run

    def slow(self: Any, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return calls(self, inputs)

    with patch.object(type(runner), "_run", slow):
        threads = [threading.Thread(target=scene.run, args=(3,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == [1]
    assert scene.network.tally == Tally(engine=10, compared=1)

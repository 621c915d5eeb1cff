"""Engines that are damaged, refused or cannot be built; and the real model's, built in a child."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, MissingEngineError
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.base import Runner
from i2v_tensorrt.engine_builder.backends.host_weights import tensors as weights_of
from i2v_tensorrt.engine_builder.build.parity import passes
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toy_model import BROKE, SIZES, MakeSet, breaking, damage, keys, run
from ...helpers.toys import CPU, InProcess, ToyBackend, ToyRunner, contents


@pytest.mark.parametrize("loaded_before", [False, True])
def test_a_damaged_engine_is_put_aside_and_built_again(make: MakeSet, toy: ToyBackend, loaded_before: bool) -> None:
    engines = make()
    run(engines)
    if loaded_before:
        engines.unload()
    else:
        engines = make()
    before = damage(engines.store)
    assert run(engines) == "toy"
    assert len(toy.builds_done) == 2
    assert keys(engines) == before
    aside = list((engines.store.root / ".quarantine").iterdir())
    assert [path.name[:64] for path in aside] == before


def test_a_damaged_range_engine_is_replaced_by_one_for_the_size_asked(make: MakeSet) -> None:
    """Under the exact policy, the one built anew must fit this size, not the old one's best."""
    run(make(shapes="range"))
    damage(make().store)
    engines = make(shapes="exact")
    assert run(engines, {**SIZES, "frames": 7}) == "toy"


def test_a_damaged_engine_runs_eager_or_stops_by_policy(make: MakeSet) -> None:
    run(make())
    (key,) = damage(make().store)
    eager = make(on_missing="eager")
    assert run(eager) == "eager"
    assert len(eager.take_notes()) == 1
    with pytest.raises(MissingEngineError):
        run(make(on_missing="stop"))
    assert keys(eager) == []
    assert key


def test_a_runtime_that_refuses_a_sound_engine_leaves_it_and_runs_eager(
    make: MakeSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(make())
    engines = make()

    def refuse(self: Runner, scratch_bytes: int = 0) -> None:
        raise EngineError("The driver is too old.")

    monkeypatch.setattr(ToyRunner, "load", refuse)
    assert [run(engines), run(engines)] == ["eager", "eager"]
    assert engines.take_notes() == ["core runs in eager PyTorch, which is slower. The driver is too old."]
    assert len(keys(engines)) == 1


def test_a_build_that_fails_runs_eager_and_is_not_tried_again(make: MakeSet, toy: ToyBackend) -> None:
    other = {**SIZES, "frames": 5}
    make(shapes="exact").build("core", other, InProcess())
    tries = breaking(toy)
    engines = make(shapes="exact")
    assert [run(engines), run(engines, {**SIZES, "frames": 6})] == ["eager", "eager"]
    assert engines.take_notes() == [f"core runs in eager PyTorch, which is slower. {BROKE}"]
    assert len(tries) == 1
    assert list((engines.store.root / ".staging").iterdir()) == []
    assert run(engines, other) == "toy", "it does not hide one that is there"


def test_an_engine_that_fails_the_gate_is_never_used(make: MakeSet, toy: ToyBackend) -> None:
    toy.fault = lambda prediction: prediction.flip(0)
    engines = make()
    assert run(engines) == "eager"
    (note,) = engines.take_notes()
    assert "core: The fp32 engine does not give the reference's result" in note
    assert keys(engines) == []


def test_an_engine_of_another_version_of_the_backend_is_not_taken(make: MakeSet, toy: ToyBackend) -> None:
    run(make())
    toy.version = "2.0"
    with pytest.raises(MissingEngineError):
        run(make(on_missing="stop"))


@pytest.mark.parametrize("sound", [True, False])
def test_an_engine_that_nobody_saw_run_is_checked_before_its_first_use(
    make: MakeSet, toy: ToyBackend, sound: bool
) -> None:
    """Such as one that was built elsewhere, and fails here."""
    run(make())
    engines = make()
    (plan,) = engines.store.plans()
    engines.store.set_verdict(plan, None)  # type: ignore[arg-type]
    if sound:
        assert run(engines) == "toy"
        (plan,) = engines.store.plans()
        assert plan.manifest.verdict is not None
        passes(plan.manifest.verdict, "fp32")
    else:
        toy.fault = lambda prediction: prediction.flip(0)
        assert run(engines) == "eager"
        assert "does not give the reference's result" in engines.take_notes()[0]


# The real model.


def test_two_sets_over_one_model_share_the_weights_of_what_runs_eager(tiny_folder: Path, tmp_path: Path) -> None:
    model = open_model(tiny_folder)
    first, second = (EngineSet(model, EngineStore(tmp_path), EnginePolicy(backend="eager"), CPU) for _ in range(2))
    sizes = {"batch": 2}
    runners = [each.runner("text_encoder", sizes) for each in (first, second)]
    tensors = [[*weights_of(runner._module)] for runner in runners]
    assert [each.data_ptr() for each in tensors[0]] == [each.data_ptr() for each in tensors[1]]
    network = model.components["text_encoder"].spec
    inputs = example_inputs(EngineSpec(network, ShapeProfile(), "fp32"), sizes)
    expected = second.run("text_encoder", inputs)["text_states"]
    first.unload()
    assert torch.equal(second.run("text_encoder", inputs)["text_states"], expected)
    assert torch.equal(first.run("text_encoder", inputs)["text_states"], expected)


def test_a_real_engine_is_built_in_a_child_and_found_again(tiny_folder: Path, tmp_path: Path) -> None:
    model, store = open_model(tiny_folder), EngineStore(tmp_path)
    inputs = example_inputs(
        EngineSpec(model.components["text_encoder"].spec, ShapeProfile(), "fp32"), {"batch": 2}, seed=5
    )
    policy = EnginePolicy(backend="onnxruntime", shapes="exact")
    built = EngineSet(model, store, policy, CPU)
    first = built.run("text_encoder", inputs)["text_states"]
    assert built.describe("text_encoder") == "onnxruntime, fp32 on cpu"
    found = EngineSet(model, store, EnginePolicy(backend="onnxruntime", on_missing="stop"), CPU)
    assert torch.equal(found.run("text_encoder", inputs)["text_states"], first)
    eager = EngineSet(model, store, EnginePolicy(backend="eager"), CPU)
    assert torch.allclose(eager.run("text_encoder", inputs)["text_states"], first, rtol=0, atol=1e-5)
    before = contents(store.root)
    with pytest.raises(MissingEngineError, match="batch is 1, 1 below the smallest supported 2"):
        found.run("text_encoder", {"input_ids": inputs["input_ids"][:1]})
    assert contents(store.root) == before

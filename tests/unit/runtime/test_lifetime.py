"""What holds weights dies with its last user, at once: nobody waits for Python's collector of cycles."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.host_weights import tensors as weights_of
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toy_model import CHUNKED, ODD, SIZES, MakeSet, breaking, run
from ...helpers.toys import CPU, ToyBackend, ToyRunner

EAGER = EnginePolicy(backend="eager", precision="fp32")
SMALL = {"batch": 1, "frames": 1, "chunk": 1, "latent_height": 8, "latent_width": 8, "tokens": 4}


@pytest.fixture(autouse=True)
def _no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def watched(*things: Any) -> Callable[[], list[str]]:
    """Which of the things are still there, by their classes."""
    found = [(type(thing).__name__, weakref.ref(thing)) for thing in things]
    return lambda: [name for name, thing in found if thing() is not None]


def test_a_set_dies_with_its_runners(make: MakeSet) -> None:
    engines = make()
    assert [run(engines), run(engines, ODD)] == ["toy", "eager"]
    runners = [engines.runner("core", sizes) for sizes in (SIZES, ODD)]
    alive = watched(engines, *runners, *(runner._network for runner in runners))  # type: ignore[attr-defined]
    del engines, runners
    assert alive() == []


def test_sets_whose_build_failed_die_too(make: MakeSet, toy: ToyBackend) -> None:
    """An error that is kept keeps the frames that it went through, and all that they name."""
    breaking(toy)
    first, second = make(), make()
    first.prepare(CHUNKED)
    for engines in (first, second):
        assert [run(engines), run(engines)] == ["eager", "eager"]
    alive = watched(first, second, first.runner("core", SIZES), second.runner("core", SIZES))
    del first, second, engines
    assert alive() == []


def test_a_set_that_stops_dies_with_its_error(make: MakeSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: ToyRunner) -> None:
        raise EngineError("The driver is too old.")

    missing, unloadable = make(on_missing="stop"), make(on_missing="stop")
    for engines in (missing, unloadable):
        with contextlib.suppress(EngineError):  # what was raised is gone after that
            run(engines)
            pytest.fail("it is to stop")
        run(make())
        monkeypatch.setattr(ToyRunner, "load", refuse)
    alive = watched(missing, unloadable)
    del missing, unloadable, engines
    assert alive() == []


KINDS = ("i2vgen", "svd", "wan21", "a14b", "ti2v")


@pytest.fixture
def folder(request: pytest.FixtureRequest, tiny_folder: Path, tiny_svd_folder: Path, tiny_wan: Any) -> Path:
    kind = request.param
    return {"i2vgen": tiny_folder, "svd": tiny_svd_folder}.get(kind) or tiny_wan(kind)


def held_by(engines: EngineSet) -> list[Any]:
    """Runs every component once; the runners and their weights."""
    found: list[Any] = []
    for name, component in engines.model.components.items():
        inputs = example_inputs(EngineSpec(component.spec, ShapeProfile(), "fp32"), SMALL)
        engines.run(name, inputs)
        runner = engines.runner(name, component.spec.sizes_of(inputs))
        found += [runner, *weights_of(runner._module)]  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("folder", KINDS, indirect=True)
def test_weights_die_with_the_set_though_the_model_lives_on(folder: Path, tmp_path: Path) -> None:
    model = open_model(folder)
    engines = EngineSet(model, EngineStore(tmp_path), EAGER, CPU)
    alive = watched(engines, *held_by(engines))
    assert alive()
    del engines
    assert alive() == []

"""Which rungs there are, which rows they give, and in what order they are climbed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import rungs as rungs_module
from i2v_tensorrt.benchmarks.ladder.row import MEASURED, Row
from i2v_tensorrt.benchmarks.ladder.rungs import REFERENCE, Rung, ladder, tasks
from i2v_tensorrt.engine_builder.backends.base import Availability
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend
from i2v_tensorrt.pipeline.models.registry import open_model

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Present(EagerBackend):
    """A backend that is there."""


class Absent(EagerBackend):
    """One that is not."""

    def availability(self, device: torch.device) -> Availability:
        return Availability(False, "It is not here.", "pip install it")


class Model:
    """As much of a model as the ladder asks."""

    core = "core"
    known_rewrites = {"core": ("one", "three", "two")}

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        assert (component, backend) == ("core", "inductor")
        return ("one", "three", "two")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    backends = {"tensorrt": Absent(), "inductor": Present(), "onnxruntime": Present(), "eager": EagerBackend()}
    monkeypatch.setattr(rungs_module, "BACKENDS", backends)
    return Model()


def names(rungs: list[Rung]) -> list[str]:
    return [row.name for rung in rungs for row in rung.rows]


def test_the_ladder_on_a_gpu(model: Any) -> None:
    rungs, missing = ladder(model, GPU, "all", "bf16")
    assert names(rungs) == [
        "diffusers-fp32", "diffusers-half", "eager", "compile-default", "compile-default-graph", "compile-max",
        "compile-max-graph", "inductor-plain", "inductor+one", "inductor+three", "inductor", "onnxruntime",
    ]  # fmt: skip
    assert [rung.rewrites for rung in rungs if rung.backend == "inductor"] == [
        (), ("one",), ("one", "three"), None,
    ]  # fmt: skip
    assert {rung.precision for rung in rungs if not rung.is_reference} == {"bf16"}
    assert [rung.name for rung in rungs if rung.headline] == ["inductor"]
    assert missing == [Row("tensorrt", "TensorRT", reason="It is not here. To install it: pip install it")]


@pytest.mark.parametrize(("rewrites", "count"), [("none", 1), ("last", 2), ("all", 4)])
def test_how_many_rewrites(model: Any, rewrites: str, count: int) -> None:
    rungs, _ = ladder(model, GPU, rewrites, "bf16")
    assert sum(rung.backend == "inductor" for rung in rungs) == count


def test_rewrites_that_are_not_taken_unasked_are_measured_all_the_same(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "rewrites", lambda *_: ())
    rungs, _ = ladder(model, GPU, "all", "bf16")
    assert [rung.name for rung in rungs if rung.backend == "inductor"] == [
        "inductor+one", "inductor+three", "inductor+two", "inductor",
    ]  # fmt: skip


def test_a_cpu_has_no_graphs_and_no_half_precision(model: Any) -> None:
    rungs, _ = ladder(model, CPU, "none", "fp32")
    assert not any(rung.captured for rung in rungs)
    assert {rung.precision for rung in rungs} == {"fp32"}


def test_the_last_of_the_packs_own_rows_stands_for_it_where_there_is_no_other(tiny_folder: Path) -> None:
    rungs, _ = ladder(open_model(tiny_folder), CPU, "none", "fp32")
    assert sum(rung.headline for rung in rungs) == 1
    assert not rungs[0].headline


def test_what_matters_most_comes_first_and_each_warm_start_after_its_row(model: Any) -> None:
    order = [(task.rung.name, task.warm) for task in tasks(ladder(model, GPU, "all", "bf16")[0], [], {})]
    assert order[:4] == [
        (REFERENCE, False), ("inductor", False), ("compile-default", False), ("inductor", True),
    ]  # fmt: skip
    assert (REFERENCE, True) not in order
    assert all(order.index((name, False)) < order.index((name, True)) for name, warm in order if warm)


def test_rows_by_name(model: Any) -> None:
    rungs, _ = ladder(model, GPU, "none", "bf16")
    found = tasks(rungs, ["compile-max-graph", "eager"], {})
    assert [task.describes for task in found] == [
        "eager", "eager, warm start", "compile-max", "compile-max, warm start",
    ]  # fmt: skip


def test_going_on_measures_what_lacks(model: Any) -> None:
    rungs, _ = ladder(model, GPU, "none", "bf16")
    whole = {"clip_hot_s": 1.0, "clip_warm_start_s": 2.0}
    rows = {name: Row(name, "", MEASURED, figures=whole) for name in names(rungs)}
    assert tasks(rungs, [], rows) == []
    rows["inductor"] = Row("inductor", "", MEASURED, figures={"clip_hot_s": 1.0})
    rows["compile-default-graph"] = Row("compile-default-graph", "")
    assert [task.describes for task in tasks(rungs, [], rows)] == ["compile-default", "inductor, warm start"]

"""Which variants there are, which rows they give, and in what order they are climbed."""

from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import variants as rungs_module
from i2v_tensorrt.benchmarks.ladder.row import MEASURED, Row
from i2v_tensorrt.benchmarks.ladder.variants import REFERENCE, Variant, ladder, tasks
from i2v_tensorrt.engine_builder.backends.base import Availability
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend
from i2v_tensorrt.pipeline.models.registry import open_model

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


class Absent(EagerBackend):
    """A backend that is not there."""

    def availability(self, device: torch.device) -> Availability:
        return Availability(False, "It is not here.", "pip install it")


class Model:
    """As much of a model as the ladder asks."""

    denoiser = "core"
    known_rewrites = {"core": ("one", "three", "two")}

    def rewrites(self, component: str, backend: str) -> tuple[str, ...]:
        assert (component, backend) == ("core", "inductor")
        return ("one", "three", "two")


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Any:
    backends = {
        "tensorrt": Absent(),
        "inductor": EagerBackend(),
        "onnxruntime": EagerBackend(),
        "eager": EagerBackend(),
    }
    monkeypatch.setattr(rungs_module, "BACKENDS", backends)
    return Model()


def names(variants: list[Variant]) -> list[str]:
    return [row.name for variant in variants for row in variant.rows]


def test_the_ladder_on_a_gpu(model: Any) -> None:
    variants, missing = ladder(model, GPU, "all", "bf16")
    assert names(variants) == [
        "diffusers-fp32", "diffusers-half", "eager", "compile-default", "compile-default-graph", "compile-max",
        "compile-max-graph", "inductor-plain", "inductor+one", "inductor+three", "inductor", "onnxruntime",
    ]  # fmt: skip
    assert [variant.rewrites for variant in variants if variant.backend == "inductor"] == [
        (), ("one",), ("one", "three"), None,
    ]  # fmt: skip
    assert {variant.precision for variant in variants if not variant.is_reference} == {"bf16"}
    assert [variant.name for variant in variants if variant.headline] == ["inductor"]
    assert missing == [Row("tensorrt", "TensorRT", reason="It is not here. To install it: pip install it")]


@pytest.mark.parametrize(("rewrites", "count"), [("none", 1), ("last", 2), ("all", 4)])
def test_how_many_rewrites(model: Any, monkeypatch: pytest.MonkeyPatch, rewrites: str, count: int) -> None:
    assert sum(variant.backend == "inductor" for variant in ladder(model, GPU, rewrites, "bf16")[0]) == count
    # Those that are not taken unasked are measured all the same.
    monkeypatch.setattr(Model, "rewrites", lambda *_: ())
    found = [variant.name for variant in ladder(model, GPU, rewrites, "bf16")[0] if variant.backend == "inductor"]
    assert rewrites != "all" or found == ["inductor+one", "inductor+three", "inductor+two", "inductor"]


def test_a_cpu_has_no_graphs_and_no_half_precision(model: Any, tiny_folder: Path) -> None:
    variants, _ = ladder(model, CPU, "none", "fp32")
    assert not any(variant.captured for variant in variants)
    assert {variant.precision for variant in variants} == {"fp32"}
    # The last of the pack's own rows stands for it where there is no other.
    variants, _ = ladder(open_model(tiny_folder), CPU, "none", "fp32")
    assert sum(variant.headline for variant in variants) == 1
    assert not variants[0].headline


def test_what_matters_most_comes_first_and_each_warm_start_after_its_row(model: Any) -> None:
    order = [(task.variant.name, task.warm) for task in tasks(ladder(model, GPU, "all", "bf16")[0], [], {})]
    assert order[:4] == [
        (REFERENCE, False), ("inductor", False), ("compile-default", False), ("inductor", True),
    ]  # fmt: skip
    assert (REFERENCE, True) not in order
    assert all(order.index((name, False)) < order.index((name, True)) for name, warm in order if warm)


def test_what_is_named_or_lacks_is_measured(model: Any) -> None:
    variants, _ = ladder(model, GPU, "none", "bf16")
    by_name = tasks(variants, ["compile-max-graph", "eager"], {})
    expected = [each for name in ("eager", "compile-max") for each in (name, f"{name}, warm start")]
    assert [task.describes for task in by_name] == expected
    whole = {"clip_hot_s": 1.0, "clip_warm_start_s": 2.0}
    rows = {name: Row(name, "", MEASURED, figures=whole) for name in names(variants)}
    assert tasks(variants, [], rows) == []
    rows["inductor"] = Row("inductor", "", MEASURED, figures={"clip_hot_s": 1.0})
    rows["compile-default-graph"] = Row("compile-default-graph", "")
    assert [task.describes for task in tasks(variants, [], rows)] == ["compile-default", "inductor, warm start"]

"""Engines without weights: the graph of every family over weights that it is given, and one engine for all of them."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import onnx
import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.engine_builder.backends.base import INSIDE, OUTSIDE, Runner
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeRunner
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.graph.onnx_export import FILE_NAME, example_inputs
from i2v_tensorrt.engine_builder.graph.outside_weights import FILE_NAME as TABLE
from i2v_tensorrt.engine_builder.graph.outside_weights import OutsideWeights, table_from_text
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ..helpers.agreement import GATE, Pair, Sizes, assert_equal, assert_untraced_sizes_agree, onnxruntime_pair
from ..helpers.counts import Evidence, counted
from ..helpers.loras import DIFFUSERS, layers, write_lora
from ..helpers.toys import CPU
from .families import FAMILIES, plane, volume

Open = Callable[[str], VideoModel]
LoadPair = Callable[[str, str], Pair]
"""By family and component."""
ROWS: list[tuple[str, str, list[Sizes]]] = [
    ("i2vgen_xl", "text_encoder", [{"batch": 1}]),
    ("i2vgen_xl", "image_encoder", []),  # it has one size
    ("i2vgen_xl", "vae_encoder", [plane(8, 9), plane(16, 8), plane(11, 13), plane(9, 24)]),
    ("i2vgen_xl", "core", FAMILIES["i2vgen_xl"].fused["core"]),  # type: ignore[list-item]
    ("svd", "core", FAMILIES["svd"].engines["core"]),
    ("svd", "vae_decoder", FAMILIES["svd"].engines["vae_decoder"]),
    ("wan21", "core", FAMILIES["wan21"].engines["core"]),
    ("wan21", "text_encoder", [{"tokens": 9}, {"tokens": 31}, {"tokens": 130}, {"tokens": 512}]),
    ("a14b", "core_late", FAMILIES["a14b"].engines["core_late"]),
    ("ti2v", "core", FAMILIES["ti2v"].engines["core"]),
]
SLOW = ("core", "core_late", "vae_decoder")
RARE = ("svd", "core")
"""A network that is left to the full counts: its blocks are those of another one, in another order."""


def how_often(name: str, component: str) -> list[pytest.MarkDecorator]:
    slow = [pytest.mark.slow] if component in SLOW else []
    return [*slow, pytest.mark.torture] if (name, component) == RARE else slow


each_graph = pytest.mark.parametrize(
    ("name", "component", "sizes"),
    [pytest.param(*row, marks=how_often(*row[:2]), id=f"{row[0]}-{row[1]}") for row in ROWS],
)


@pytest.fixture(scope="module")
def pair(model: Open, tmp_path_factory: pytest.TempPathFactory) -> LoadPair:
    store = EngineStore(tmp_path_factory.mktemp("engines"))
    return cache(lambda name, component: onnxruntime_pair(model(name), component, store, OUTSIDE))


def plan_of(engine: Runner) -> Plan:
    assert isinstance(engine, OnnxRuntimeRunner)
    return engine._plan


def table_of(plan: Plan) -> OutsideWeights:
    return table_from_text(plan.read(TABLE).decode())


@each_graph
def test_it_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(
    pair: LoadPair, name: str, component: str, sizes: list[Sizes]
) -> None:
    eager, engine = pair(name, component)
    if sizes:
        assert_untraced_sizes_agree((eager, engine), sizes)
        return
    inputs = example_inputs(engine.spec, {}, seed=7)
    (expected,), (found,) = eager(inputs).values(), engine(inputs).values()
    assert_equal(expected, found, {})


@each_graph
def test_no_node_works_on_weights_alone_and_none_stays_in_the_engine(
    pair: LoadPair, name: str, component: str, sizes: list[Sizes]
) -> None:
    plan = plan_of(pair(name, component)[1])
    graph = onnx.load(plan.folder / FILE_NAME, load_external_data=False).graph
    table = table_of(plan)
    weights, constants = set(table.inputs), {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        given = {value for value in node.input if value}
        if not given - constants:
            constants.update(node.output)
        assert not given & weights or given - weights - constants, f"{node.op_type} of {sorted(given)}"
    names = {value.name for value in graph.input}
    assert weights <= names
    assert names - weights <= {tensor.name for tensor in plan.manifest.spec.network.inputs}
    assert plan.manifest.size_bytes < 0.7 * weights_bytes(table) + 2_000_000


def weights_bytes(table: OutsideWeights) -> int:
    return sum(4 * torch.Size(weight.shape).numel() for weight in table.weights.values())


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["two swapped", "one of another checkpoint", "one stale"])
def test_a_wrong_weight_is_seen(pair: LoadPair, fault: str) -> None:
    """What the comparison is worth: two layers of one shape exchanged, one of other numbers, one without its LoRA."""
    eager, engine = pair("wan21", "core")
    assert isinstance(engine, OnnxRuntimeRunner)
    inputs = example_inputs(engine.spec, volume(1, 1, 4, 4), seed=7)
    before = eager(inputs)["prediction"]
    found = dict(engine._weights._module.named_parameters())
    one, other = (found[f"blocks.{number}.ffn.net.2.weight"] for number in (0, 1))
    kept = one.clone(), other.clone()
    try:
        if fault == "two swapped":
            one.data.copy_(kept[1])
            other.data.copy_(kept[0])
        else:
            one.data.add_(torch.randn(one.shape) * one.std() / (1 if fault == "one of another checkpoint" else 4))
        assert (engine(inputs)["prediction"] - before).abs().max() > 10 * GATE * before.abs().max()
    finally:
        one.data.copy_(kept[0])
        other.data.copy_(kept[1])
    assert torch.equal(engine(inputs)["prediction"], engine(inputs)["prediction"])


SIZES = volume(1, 2, 4, 4)
POLICY = EnginePolicy("onnxruntime", "fp32", "exact", weights=OUTSIDE)


@pytest.fixture(scope="module")
def fine_tunes(tmp_path_factory: pytest.TempPathFactory) -> list[VideoModel]:
    """Three checkpoints of one configuration."""
    folder, sizes = tmp_path_factory.mktemp("fine_tunes"), TinyWanSizes(layers=1)
    return [open_model(write_tiny_wan(folder / str(seed), "wan21", sizes, seed)) for seed in range(3)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> EngineStore:
    return EngineStore(tmp_path_factory.mktemp("shared"))


def predictions(model: VideoModel, store: EngineStore) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager PyTorch's, and that of an engine from the store, or of one that is built."""
    engines = EngineSet(model, store, POLICY, CPU)
    inputs = example_inputs(engines.catalog.request("core", SIZES).spec, dict(SIZES), seed=3)
    with torch.inference_mode():
        expected = model.load("core", "fp32")(**inputs)
    found = engines.run("core", inputs)["prediction"]
    assert engines.describe("core") == "onnxruntime, fp32 on cpu", engines.take_notes()
    return expected, found


def assert_engine_agrees(model: VideoModel, store: EngineStore) -> torch.Tensor:
    expected, found = predictions(model, store)
    assert_equal(expected, found, SIZES)
    return found


def test_one_engine_serves_every_fine_tune(fine_tunes: list[VideoModel], shared: EngineStore) -> None:
    found = [assert_engine_agrees(model, shared) for model in fine_tunes]
    (plan,) = shared.plans()
    assert plan.manifest.details["gated_with"] == fine_tunes[0].components["core"].spec.weights_sha256
    assert min(float((one - other).abs().max()) for one, other in zip(found, found[1:], strict=False)) > 0.01


@counted(3, 100)
def test_a_lora_is_put_on_and_off_and_the_engine_stays(
    fine_tunes: list[VideoModel], shared: EngineStore, count: int, tmp_path: Path, evidence: Evidence
) -> None:
    model, file = fine_tunes[0], tmp_path / "lora.safetensors"
    write_lora(file, layers(model.checkpoint.parts["transformer"]), DIFFUSERS)
    plain = assert_engine_agrees(model, shared)
    before = [(plan.manifest.key, plan.manifest.created_at) for plan in shared.plans()]
    for number in range(count):
        with_lora = assert_engine_agrees(model.with_adapter(file, 0.1 + number / count), shared)
        assert (with_lora - plain).abs().max() > 100 * GATE
        assert torch.equal(predictions(model, shared)[1], plain)
    assert [(plan.manifest.key, plan.manifest.created_at) for plan in shared.plans()] == before
    assert len(before) == 1
    evidence("a LoRA put on and off over one engine", count, "no build, and the same result without it, bit for bit")


def test_a_configuration_alone_is_built_and_serves_the_checkpoint_that_comes_later(
    fine_tunes: list[VideoModel], tmp_path: Path
) -> None:
    store, folder = EngineStore(tmp_path / "engines"), tmp_path / "configuration"
    shutil.copytree(fine_tunes[0].checkpoint.folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    configuration = open_model(folder, needs_weights=False)
    with BuildProcess() as process:
        result = EngineSet(configuration, store, POLICY, CPU).build("core", SIZES, process)
    assert result.plan.manifest.verdict is None and "gated_with" not in result.plan.manifest.details
    assert_engine_agrees(fine_tunes[0], store)
    (plan,) = store.plans()
    assert plan.manifest.verdict is not None and plan.manifest.verdict.snr_db > 90
    assert plan.manifest.details["gated_with"] == fine_tunes[0].components["core"].spec.weights_sha256


def test_weights_inside_need_weights(fine_tunes: list[VideoModel], tmp_path: Path) -> None:
    configuration = open_model(fine_tunes[0].checkpoint.folder, needs_weights=False)
    hollow = type(configuration)(configuration.checkpoint.without_weights())
    engines = EngineSet(hollow, EngineStore(tmp_path), replace(POLICY, weights=INSIDE), CPU)
    with pytest.raises(InputError, match="holds its weights, found a configuration alone"):
        engines.catalog.request("core", SIZES)


def test_engines_with_weights_inside_are_read_on(fine_tunes: list[VideoModel], tmp_path: Path) -> None:
    """One that was built before there was a choice serves where the user has none; a wish for another place counts."""
    model, store, auto = fine_tunes[0], EngineStore(tmp_path), replace(POLICY, weights="auto")
    inside = EngineSet(model, store, replace(POLICY, weights=INSIDE), CPU)
    with BuildProcess() as process:
        built = inside.build("core", SIZES, process).plan.manifest.key
    assert [plan.manifest.key for plan in EngineSet(model, store, auto, CPU).catalog.stored("core")] == [built]
    assert EngineSet(model, store, POLICY, CPU).catalog.stored("core") == []
    assert EngineSet(fine_tunes[1], store, auto, CPU).catalog.stored("core") == [], "those are other weights"

"""Weights that are streamed: by which budget, built how, and what is left of the memory that an engine takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.engine_builder.backends.tensorrt import backend, runner
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN, RTX, load_library
from i2v_tensorrt.engine_builder.backends.tensorrt.weight_streaming import (
    RESERVE_BYTES,
    Streaming,
    needs_streaming,
    set_budget,
)
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import CPU, ToyNetwork, publish, toy_spec

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")

WEIGHTS, SCRATCH, STAGING = 10 << 30, 2 << 30, 1 << 20
AROUND = SCRATCH + RESERVE_BYTES


def engine_of(streamable: int) -> Any:
    """The library's own class, with the figures of an engine."""
    engine = create_autospec(trt.ICudaEngine, instance=True)
    engine.streamable_weights_size = streamable
    engine.device_memory_size_v2 = SCRATCH
    engine.weight_streaming_scratch_memory_size = STAGING
    return engine


@pytest.mark.parametrize(
    ("free", "kept"),
    [
        (AROUND + WEIGHTS, WEIGHTS),
        (AROUND + 3 * WEIGHTS, WEIGHTS),
        (AROUND + WEIGHTS - 1, WEIGHTS - 1 - STAGING),
        (AROUND + STAGING + (5 << 30), 5 << 30),
        (RESERVE_BYTES, 0),
        (0, 0),
    ],
)
def test_as_many_weights_stay_as_there_is_room_for(free: int, kept: int) -> None:
    engine = engine_of(WEIGHTS)
    assert set_budget(engine, free) == Streaming(WEIGHTS, kept)
    assert engine.weight_streaming_budget_v2 == kept


def test_scratch_memory_for_sizes_that_no_gpu_could_hold_leaves_room_for_weights() -> None:
    engine = engine_of(WEIGHTS)
    engine.device_memory_size_v2 = 1 << 40
    assert set_budget(engine, 2 * WEIGHTS) == Streaming(WEIGHTS, WEIGHTS)


def test_an_engine_that_cannot_stream_is_left_alone() -> None:
    engine = engine_of(0)
    engine.weight_streaming_budget_v2 = before = object()
    assert set_budget(engine, 0) == Streaming()
    assert engine.weight_streaming_budget_v2 is before


def test_what_the_library_really_keeps_counts() -> None:
    engine = engine_of(WEIGHTS)
    type(engine).weight_streaming_budget_v2 = property(lambda self: 7, lambda self, wanted: None)
    assert set_budget(engine, AROUND + WEIGHTS).streamed_bytes == WEIGHTS - 7


@pytest.mark.parametrize(
    ("weights", "gpu", "needed"), [(71, 100, True), (70, 100, False), (1 << 50, None, False), (0, 0, False)]
)
def test_only_what_does_not_fit_the_gpu_at_hand_is_built_for_it(weights: int, gpu: int | None, needed: bool) -> None:
    assert needs_streaming(weights, gpu) == needed


@pytest.mark.parametrize(("gpu", "flag"), [(1, True), (1 << 50, False), (None, False)])
def test_the_flag_is_on_the_build_of_what_does_not_fit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: int | None, flag: bool
) -> None:
    """A real build, with the flag read off the library's own configuration."""
    found: list[bool] = []
    real = trt.Builder.build_serialized_network

    def seen(builder: Any, network: Any, config: Any) -> Any:
        found.append(config.get_flag(trt.BuilderFlag.WEIGHT_STREAMING))
        return real(builder, network, config)

    monkeypatch.setattr(trt.Builder, "build_serialized_network", seen)
    monkeypatch.setattr(backend, "total_bytes", lambda arch: gpu)
    details = TensorRTBackend("sm_89").build(ToyNetwork().half(), toy_spec(precision="fp16"), tmp_path, lambda *_: None)
    assert found == [flag]
    assert ("weights" in details) == flag
    assert (tmp_path / PLAN).stat().st_size > 0


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, store: EngineStore) -> Iterator[SimpleNamespace]:
    """A runner whose engine can stream 10 GiB, on a GPU with as much room as `rig.free` says."""
    plan = publish(store, toy_spec(), {PLAN: b"plan" * 1000})
    engine, runtime = engine_of(WEIGHTS), create_autospec(trt.Runtime, instance=True)
    config = create_autospec(trt.IRuntimeConfig, instance=True)
    config.create_runtime_cache.return_value = None
    config.cuda_graph_strategy = None
    engine.create_runtime_config.return_value = config
    runtime.deserialize_cuda_engine.return_value = engine
    rig = SimpleNamespace(engine=engine, config=config, plan=plan, free=0)
    monkeypatch.setattr(trt, "Runtime", lambda logger: runtime)
    monkeypatch.setattr(runner, "OwnStream", lambda device: SimpleNamespace(active=Nothing, synchronize=int))
    monkeypatch.setattr(runner, "free_bytes", lambda device: rig.free)
    rig.runner = runner.TensorRTRunner(plan, plan.manifest.spec, CPU, load_library(RTX))
    yield rig


class Nothing:
    """Stands in for the stream being current."""

    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


def test_weights_that_fit_stay_and_graphs_are_captured(rig: SimpleNamespace) -> None:
    rig.free = AROUND + WEIGHTS
    rig.runner.load()
    assert rig.config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert rig.runner.warning is None
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes


def test_weights_that_do_not_fit_are_streamed_without_graphs_and_the_user_is_told(rig: SimpleNamespace) -> None:
    rig.free = AROUND + STAGING + (5 << 30)
    rig.runner.load()
    assert rig.engine.weight_streaming_budget_v2 == 5 << 30
    assert rig.config.cuda_graph_strategy is None
    assert rig.runner.warning == (
        "5.0 of 10.0 GiB of core's weights do not fit on the GPU and are brought from host memory at every call, "
        "which is slower."
    )
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes - (5 << 30)
    rig.runner.unload()
    assert (rig.runner.warning, rig.runner.memory_bytes) == (None, rig.plan.manifest.size_bytes)


def test_the_budget_is_set_before_the_context_is_made(rig: SimpleNamespace) -> None:
    seen: list[object] = []
    rig.engine.weight_streaming_budget_v2 = None
    rig.engine.create_execution_context.side_effect = lambda config: seen.append(rig.engine.weight_streaming_budget_v2)
    with pytest.raises(EngineError, match="execution context"):
        rig.runner.load()
    assert seen == [0]

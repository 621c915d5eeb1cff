"""Weights that are streamed: by which budget, and built how; the runner's part is in test_tensorrt_runner.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest

from i2v_tensorrt.engine_builder.backends.tensorrt import backend
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN
from i2v_tensorrt.engine_builder.backends.tensorrt.weight_streaming import (
    RESERVE_BYTES,
    Streaming,
    needs_streaming,
    set_budget,
)

from ...helpers.toys import ToyNetwork, toy_spec

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
    ("free", "kept", "scratch"),
    [
        (AROUND + WEIGHTS, WEIGHTS, SCRATCH),
        (AROUND + 3 * WEIGHTS, WEIGHTS, SCRATCH),
        (AROUND + WEIGHTS - 1, WEIGHTS - 1 - STAGING, SCRATCH),
        (AROUND + STAGING + (5 << 30), 5 << 30, SCRATCH),
        (RESERVE_BYTES, 0, SCRATCH),
        (0, 0, SCRATCH),
        (2 * WEIGHTS, WEIGHTS, 1 << 40),  # for sizes that no GPU could hold: room is left for weights
    ],
)
def test_as_many_weights_stay_as_there_is_room_for(free: int, kept: int, scratch: int) -> None:
    engine = engine_of(WEIGHTS)
    engine.device_memory_size_v2 = scratch
    assert set_budget(engine, free) == Streaming(WEIGHTS, kept)
    assert engine.weight_streaming_budget_v2 == kept


def test_an_engine_that_cannot_stream_is_left_alone_and_what_the_library_really_keeps_counts() -> None:
    engine = engine_of(0)
    engine.weight_streaming_budget_v2 = before = object()
    assert set_budget(engine, 0) == Streaming()
    assert engine.weight_streaming_budget_v2 is before
    engine = engine_of(WEIGHTS)
    type(engine).weight_streaming_budget_v2 = property(lambda self: 7, lambda self, wanted: None)
    assert set_budget(engine, AROUND + WEIGHTS).streamed_bytes == WEIGHTS - 7


def test_only_what_does_not_fit_the_gpu_at_hand_is_built_for_it() -> None:
    needed = [needs_streaming(*each) for each in ((71, 100), (70, 100), (1 << 50, None), (0, 0))]
    assert needed == [True, False, False, False]


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
    monkeypatch.setattr(backend, "total_bytes_of", lambda arch: gpu)
    details = TensorRTBackend("sm_89").build(ToyNetwork().half(), toy_spec(precision="fp16"), tmp_path, lambda *_: None)
    assert found == [flag]
    assert ("weights" in details) == flag
    assert (tmp_path / PLAN).stat().st_size > 0

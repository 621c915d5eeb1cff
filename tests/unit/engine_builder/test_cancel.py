"""Cancelling real TensorRT-RTX builds: whatever the stage, the child is gone within five seconds."""

from __future__ import annotations

import random
import time

import pytest

from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import TinySizes, write_tiny_checkpoint
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.clip_sizes import clip_sizes

from ...helpers.counts import Evidence, counted
from ...helpers.toys import CPU, InProcess, names

pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")

LIMIT_S = 5.0
STAGES = ("export", "parse", "build", "serialize")


class CancelledError(Exception):
    """What a host raises when its user interrupts."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    sizes = TinySizes(channels=(64, 128), head_dim=64, width=64)
    return open_model(write_tiny_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny64", sizes))


def request(model: VideoModel, component: str) -> BuildRequest:
    network = model.components[component].spec
    sizes = clip_sizes(model, 64, 64, 4)
    profile = network.limits.exact({name: size for name, size in sizes.items() if name in network.limits.ranges})
    spec = EngineSpec(network, profile, "fp16")
    return BuildRequest(spec, model.source(component, "fp16"), TensorRTBackend(), CPU, "sm_89")


class Canceller:
    """A report that raises a while after the stage was first told, or when it has passed; knows when it did."""

    def __init__(self, stage: str, delay_s: float) -> None:
        self._stage, self._delay_s = stage, delay_s
        self._due_s: float | None = None
        self.raised_s = 0.0

    def __call__(self, stage: str, done: float) -> None:
        now, is_there = time.monotonic(), stage.split(" (")[0] == self._stage
        if is_there and self._due_s is None:
            self._due_s = now + self._delay_s
        if self._due_s is not None and (now >= self._due_s or not is_there):
            self.raised_s = now
            raise CancelledError(stage)


def cancelled_s(request: BuildRequest, store: EngineStore, canceller: Canceller) -> float:
    """The seconds from the cancellation until the child has ended and nothing of its build is left."""
    with BuildProcess() as process:
        process._child = child = process._living()
        with pytest.raises(CancelledError):
            build_engine(request, store, process, report=canceller)
        waited_s = time.monotonic() - canceller.raised_s
        assert not child.is_alive
    assert list(store.plans()) == []
    assert names(store.root / ".staging") == []
    return waited_s


@pytest.mark.parametrize("stage", STAGES)
@counted(1, 20, slow=True)
def test_a_build_is_cancelled_within_five_seconds(
    model: VideoModel, store: EngineStore, stage: str, count: int, evidence: Evidence
) -> None:
    waits_s = [cancelled_s(request(model, "image_encoder"), store, Canceller(stage, 0.0)) for _ in range(count)]
    assert max(waits_s) <= LIMIT_S
    evidence(f"builds cancelled in {stage}", count, f"all ended, the slowest after {max(waits_s):.2f} s")


@counted(1, 5, slow=True)
def test_a_build_is_cancelled_while_tensorrt_says_nothing(
    model: VideoModel, store: EngineStore, count: int, evidence: Evidence
) -> None:
    """The denoiser is built for seconds, most of them without a step that TensorRT tells of."""
    draw = random.Random(count)
    waits_s = [cancelled_s(request(model, "core"), store, Canceller("build", draw.uniform(0, 2))) for _ in range(count)]
    assert max(waits_s) <= LIMIT_S
    evidence("builds cancelled while TensorRT is silent", count, f"all ended, the slowest after {max(waits_s):.2f} s")


@pytest.mark.parametrize("stage", STAGES)
def test_what_cancels_is_what_comes_out_where_no_process_lies_between(
    model: VideoModel, store: EngineStore, stage: str
) -> None:
    with pytest.raises(CancelledError, match=stage):
        build_engine(request(model, "image_encoder"), store, InProcess(), report=Canceller(stage, 0.0))
    assert names(store.root / ".staging") == []

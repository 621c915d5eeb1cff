"""Every call of TensorRT's runner: the library's real classes, specified and none of them run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import Mock, create_autospec

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.common.shapes import span
from i2v_tensorrt.engine_builder.backends.cuda_graph import CaptureError
from i2v_tensorrt.engine_builder.backends.tensorrt import runner as tensorrt_runner
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN, RTX, load_library
from i2v_tensorrt.engine_builder.backends.tensorrt.runner import KERNELS, TensorRTRunner
from i2v_tensorrt.engine_builder.backends.tensorrt.weight_streaming import RESERVE_BYTES
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import CPU, LIMITS, ToyNetwork, publish, toy_spec

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")

SMALL, WIDE = ({"batch": 1, "frames": 2, "latent_height": 8, "latent_width": width} for width in (8, 16))
SHAPE = (1, 4, 2, 8, 8)
SPEC = toy_spec(span([LIMITS.exact(SMALL), LIMITS.exact(WIDE)], LIMITS), "fp16")
FIRST_KERNELS = b"kernels of the first shape"
SCRATCH_BYTES, WEIGHTS, STAGING = 1000, 10 << 30, 1 << 20


class NoStream:
    """Stands in for a CUDA stream where there is none."""

    handle = 7
    can_capture = True
    replay = Mock()

    def __init__(self, device: torch.device) -> None: ...

    @contextmanager
    def active(self) -> Iterator[None]:
        yield

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        call()
        return self.replay

    def hand_over(self, tensor: torch.Tensor) -> None: ...

    def synchronize(self) -> None: ...


class Rig:
    """A runner over a plan of two profiles, on a GPU of which `free` bytes are known to be free."""

    def __init__(self, store: EngineStore) -> None:
        self.plan = publish(store, SPEC, {PLAN: b"plan" * 1000})
        self.free: int | None = None
        self.replay = Mock()
        self.context = create_autospec(trt.IExecutionContext, instance=True)
        self.context.update_device_memory_size_for_shapes.return_value = SCRATCH_BYTES
        self.kernels = create_autospec(trt.IRuntimeCache, instance=True)
        self.kernels.serialize.return_value = memoryview(FIRST_KERNELS)
        self.config = create_autospec(trt.IRuntimeConfig, instance=True)
        self.config.create_runtime_cache.return_value = self.kernels
        self.config.cuda_graph_strategy = None
        self.engine = create_autospec(trt.ICudaEngine, instance=True)
        self.engine.create_runtime_config.return_value = self.config
        self.engine.create_execution_context.return_value = self.context
        names = ("sample", "strength", "prediction")
        self.engine.num_io_tensors = len(names)
        self.engine.get_tensor_name.side_effect = names.__getitem__
        self.engine.streamable_weights_size = 0
        self.engine.device_memory_size_v2 = 2 << 30
        self.engine.weight_streaming_scratch_memory_size = STAGING
        self.runtime = create_autospec(trt.Runtime, instance=True)
        self.runtime.deserialize_cuda_engine.return_value = self.engine
        self.runner = self.another_runner()

    def another_runner(self, *, is_rtx: bool = True) -> TensorRTRunner:
        """As another process would make it."""
        return TensorRTRunner(self.plan, SPEC, ToyNetwork, CPU, replace(load_library(RTX), is_rtx=is_rtx))

    def run(self, *sizes: dict[str, int]) -> list[torch.Tensor]:
        """The results at each of the sizes, of an engine that is loaded by now."""
        self.runner.load()
        return [self.runner(example_inputs(SPEC, each))["prediction"] for each in sizes]

    def told(self, *names: str) -> list[tuple[Any, ...]]:
        """The context's calls of these names, with what they were given."""
        return [(name, *args) for name, args, _ in self.context.mock_calls if name in names]

    @property
    def runs(self) -> tuple[int, int]:
        """How often the engine's work was given to the stream, or to a graph, and how often a graph was replayed."""
        return self.context.execute_async_v3.call_count, self.replay.call_count

    def install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Has the runner find these in the places of the library and of the GPU."""
        monkeypatch.setattr(trt, "Runtime", lambda logger: self.runtime)
        monkeypatch.setattr(tensorrt_runner, "OwnStream", NoStream)
        monkeypatch.setattr(tensorrt_runner, "free_bytes", lambda device: self.free)
        monkeypatch.setattr(NoStream, "replay", self.replay)


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch, store: EngineStore) -> Rig:
    made = Rig(store)
    made.install(monkeypatch)
    return made


@pytest.fixture
def full_rig(rig: Rig) -> Rig:
    """The same by the full library's ways, which captures no CUDA graphs by itself."""
    rig.runner = rig.another_runner(is_rtx=False)
    return rig


def test_loading_hands_over_the_bytes_that_were_checked(rig: Rig) -> None:
    rig.runner.load()
    rig.runtime.deserialize_cuda_engine.assert_called_once_with(rig.plan.read(PLAN))
    strategy = trt.DynamicShapesKernelSpecializationStrategy
    assert rig.config.dynamic_shapes_kernel_specialization_strategy == strategy.EAGER
    assert rig.config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    strategy = trt.ExecutionContextAllocationStrategy.USER_MANAGED
    rig.config.set_execution_context_allocation_strategy.assert_called_once_with(strategy)
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes


def test_scratch_memory_is_what_the_shapes_at_hand_need(rig: Rig) -> None:
    """Asked for once the shapes are known, given before the engine runs, and kept where it is for the next step."""
    rig.run(SMALL, SMALL)
    order = ("set_input_shape", "update_device_memory_size_for_shapes", "set_device_memory", "execute_async_v3")
    assert [name for name, *_ in rig.told(*order)] == [order[0], *order, order[3]]
    (address, size), _ = rig.context.set_device_memory.call_args
    assert size == SCRATCH_BYTES and address != 0
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes + SCRATCH_BYTES


def test_a_call_binds_every_tensor_once_and_its_result_is_the_callers_own(rig: Rig) -> None:
    first, second = rig.run(SMALL, SMALL)
    assert (first.shape, first.dtype) == (SHAPE, torch.float16)
    assert first.data_ptr() != second.data_ptr()
    assert sorted(rig.told("set_input_shape")) == [
        ("set_input_shape", "sample", SHAPE),
        ("set_input_shape", "strength", (1, 4)),
    ]
    bound = sorted(call.args[0] for call in rig.context.set_tensor_address.call_args_list)
    assert bound == ["prediction", "sample", "strength"]
    assert rig.told("execute_async_v3") == [("execute_async_v3", 7)] * 2


@pytest.mark.parametrize(
    ("owner", "call", "answer", "words", "bound"),
    [
        ("runtime", "deserialize_cuda_engine", None, "load the plan", 2),
        ("engine", "create_runtime_config", None, "execution context", 2),
        ("engine", "create_execution_context", None, "execution context", 2),
        ("context", "set_input_shape", False, "take (sample|strength) as", 1 + 2),
        ("context", "set_tensor_address", False, "take the address", 2 + 2),
        ("context", "execute_async_v3", False, "run", 2),
    ],
)
def test_every_failed_call_is_told_and_made_again_by_the_next(
    rig: Rig, owner: str, call: str, answer: object, words: str, bound: int
) -> None:
    """Shapes are set again where they, or what comes after them, were refused."""
    method = getattr(getattr(rig, owner), call)
    right, method.return_value = method.return_value, answer
    with pytest.raises(EngineError, match=words):
        rig.run(SMALL)
    method.return_value = right
    assert rig.run(SMALL)[0].shape == SHAPE
    assert len(rig.told("set_input_shape")) == bound
    assert rig.runs == (2 if words == "run" else 1, 0)


def test_a_failure_from_memory_is_pytorchs_own_error(rig: Rig) -> None:
    rig.runner._logger.last_error = "Cuda Runtime (out of memory)"
    rig.context.execute_async_v3.return_value = False
    with pytest.raises(torch.cuda.OutOfMemoryError):
        rig.run(SMALL)


def test_unloading_lets_everything_go_and_loads_again(rig: Rig) -> None:
    rig.run(SMALL)
    rig.runner.unload()
    assert not rig.runner.is_loaded
    assert rig.runner.memory_bytes == rig.plan.manifest.size_bytes
    with pytest.raises(EngineError, match="not loaded"):
        rig.runner(example_inputs(SPEC, SMALL))
    assert rig.run(SMALL)[0].shape == SHAPE


# Profiles.


def test_the_sizes_choose_the_profile(rig: Rig) -> None:
    """The context begins at the first, also when it is made again; what was set before a switch is set again."""
    rig.run(SMALL, WIDE, WIDE, SMALL)
    told = rig.told("set_optimization_profile_async", "set_input_shape", "execute_async_v3")
    assert [call for call in told if call[1] != "strength"] == [
        ("set_input_shape", "sample", SHAPE),
        ("execute_async_v3", 7),
        ("set_optimization_profile_async", 1, 7),
        ("set_input_shape", "sample", (1, 4, 2, 8, 16)),
        ("execute_async_v3", 7),
        ("execute_async_v3", 7),
        ("set_optimization_profile_async", 0, 7),
        ("set_input_shape", "sample", SHAPE),
        ("execute_async_v3", 7),
    ]
    rig.run(WIDE)
    rig.runner.unload()
    rig.context.reset_mock()
    rig.run(SMALL)
    rig.context.set_optimization_profile_async.assert_not_called()


def test_a_profile_that_cannot_be_had_is_told_and_asked_for_again(rig: Rig) -> None:
    rig.context.set_optimization_profile_async.return_value = False
    for _ in range(2):
        with pytest.raises(EngineError, match="switch to its profile 1"):
            rig.run(WIDE)
    assert len(rig.told("set_optimization_profile_async")) == 2


def test_a_size_that_is_no_preset_is_told_from_the_nearest(rig: Rig) -> None:
    with pytest.raises(InputError, match="latent_width is 14, 2 below the smallest supported 16"):
        rig.run({**SMALL, "latent_width": 14})


# CUDA graphs.


def test_the_full_librarys_calls_become_a_graph_at_the_second_of_one_shape_and_load(full_rig: Rig) -> None:
    """Other shapes and another load have other addresses, which the old graph would write to."""
    told = []
    for sizes in (SMALL, SMALL, SMALL, SMALL, WIDE, WIDE, WIDE):
        full_rig.run(sizes)
        told.append(full_rig.runs)
    assert told == [(1, 0), (2, 1), (2, 2), (2, 3), (3, 3), (4, 4), (4, 5)]
    full_rig.runner.unload()
    full_rig.run(WIDE)
    assert full_rig.runs == (5, 5)
    assert full_rig.runner.warning is None


def test_a_graph_that_cannot_be_captured_is_told_and_not_needed(full_rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "CUDA error: operation not permitted when stream is capturing"
    refused = Mock(side_effect=CaptureError(reason))
    monkeypatch.setattr(NoStream, "capture", refused)
    full_rig.run(SMALL, SMALL, SMALL)
    assert full_rig.runs == (3, 0)
    assert refused.call_count == 1
    assert full_rig.runner.warning == f"core runs without a CUDA graph, which is slower: {reason}."


def test_rtx_captures_its_graphs_by_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = Mock()
    monkeypatch.setattr(NoStream, "capture", captured)
    rig.run(SMALL, SMALL, SMALL)
    captured.assert_not_called()


# Kernels that are kept.


def test_kernels_compiled_at_the_first_run_are_there_for_the_next_process(rig: Rig) -> None:
    rig.runner.load()
    rig.kernels.deserialize.assert_not_called()
    rig.config.set_runtime_cache.assert_called_once_with(rig.kernels)
    rig.run(SMALL, SMALL)
    rig.kernels.serialize.assert_called_once_with()
    rig.another_runner().load()
    rig.kernels.deserialize.assert_called_once_with(FIRST_KERNELS)


@pytest.mark.parametrize(
    "damage", [lambda data: data[:-1], lambda data: bytes([data[0] ^ 1]) + data[1:], lambda data: b""]
)
def test_kernels_that_were_changed_are_not_taken(rig: Rig, damage: Callable[[bytes], bytes]) -> None:
    rig.run(SMALL)
    kept = rig.plan.folder / KERNELS
    kept.write_bytes(damage(kept.read_bytes()))
    rig.runner = rig.another_runner()
    rig.run(SMALL)
    rig.kernels.deserialize.assert_not_called()
    rig.another_runner().load()
    rig.kernels.deserialize.assert_called_once_with(FIRST_KERNELS)


@pytest.mark.parametrize(
    ("owner", "call", "answer"),
    [
        ("kernels", "deserialize", False),
        ("config", "set_runtime_cache", False),
        ("kernels", "serialize", None),
        ("kernels", "serialize", memoryview(b"")),
        ("config", "create_runtime_cache", None),
    ],
)
def test_an_engine_runs_without_kept_kernels(rig: Rig, owner: str, call: str, answer: object) -> None:
    rig.run(SMALL)
    getattr(getattr(rig, owner), call).return_value = answer
    rig.runner = rig.another_runner()
    assert rig.run(SMALL)[0].shape == SHAPE


# Weights that are streamed.


def test_weights_that_fit_stay_and_others_are_streamed_without_graphs_and_the_user_is_told(rig: Rig) -> None:
    engine, size_bytes = rig.engine, rig.plan.manifest.size_bytes
    engine.streamable_weights_size = WEIGHTS
    rig.free = engine.device_memory_size_v2 + RESERVE_BYTES + WEIGHTS
    rig.runner.load()
    assert rig.config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
    assert (rig.runner.warning, rig.runner.memory_bytes) == (None, size_bytes)
    rig.runner.unload()
    rig.config.cuda_graph_strategy = None
    rig.free = engine.device_memory_size_v2 + RESERVE_BYTES + STAGING + (5 << 30)
    rig.runner.load()
    assert engine.weight_streaming_budget_v2 == 5 << 30
    assert rig.config.cuda_graph_strategy is None
    assert rig.runner.warning == (
        "5.0 of 10.0 GiB of core's weights do not fit on the GPU and are brought from host memory at every call, "
        "which is slower."
    )
    assert rig.runner.memory_bytes == size_bytes - (5 << 30)
    rig.runner.unload()
    assert (rig.runner.warning, rig.runner.memory_bytes) == (None, size_bytes)


def test_the_budget_is_set_before_the_context_is_made(rig: Rig) -> None:
    rig.engine.streamable_weights_size, rig.free = WEIGHTS, 0
    seen: list[object] = []
    rig.engine.weight_streaming_budget_v2 = None
    rig.engine.create_execution_context.side_effect = lambda config: seen.append(rig.engine.weight_streaming_budget_v2)
    with pytest.raises(EngineError, match="execution context"):
        rig.runner.load()
    assert seen == [0]

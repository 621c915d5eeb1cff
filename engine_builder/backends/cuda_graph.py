"""CUDA graphs: a call captured once and replayed by one launch, where that is safe and pays.

PyTorch does not undo a capture that fails: the stream, the default generator and the allocator stay in it, and later
work fails or leaks. So each of them is kept out of a capture here, or put back.
"""

from __future__ import annotations

import gc
import logging
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from .base import in_a_line, no_collection

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Tensors = dict[str, "torch.Tensor"]
Call = Callable[[Tensors], Tensors]
Result = TypeVar("Result")

LAUNCH_BOUND = 0.9
"""The share of a call's time that the CPU spends launching it, from which a graph pays: below, the GPU is busy."""


class CaptureError(Exception):
    """A call could not be captured; everything is as it was before the attempt."""


@dataclass
class _Process:
    """State of this process: after one failed capture it captures no more, for the next would fail again."""

    has_failed: bool = False


_process = _Process()


def can_capture(device: torch.device) -> bool:
    """Whether graphs are captured on the device at all.

    Only PyTorch's own allocator reports the memory that a graph holds and takes it back: ComfyUI's default,
    cudaMallocAsync, does neither.
    """
    import torch

    if device.type != "cuda" or torch.version.hip or _process.has_failed:
        return False
    return torch.cuda.get_allocator_backend() == "native"


def is_launch_bound(call: Callable[[], Result], device: torch.device) -> tuple[Result, bool]:
    """The call's result, and whether launching it took the CPU as long as computing it took the GPU."""
    import torch

    torch.cuda.synchronize(device)
    started = time.perf_counter()
    result = call()
    launched_s = time.perf_counter() - started
    torch.cuda.synchronize(device)
    return result, launched_s >= LAUNCH_BOUND * (time.perf_counter() - started)


def capture(
    call: Callable[[], Result], device: torch.device, pool: Any, stream: torch.cuda.Stream | None = None
) -> tuple[torch.cuda.CUDAGraph, Result]:
    """Captures what `call` gives to the current stream into a graph with memory from `pool`; nothing is computed.

    `stream` is the one to capture on, where that is not `side_stream`. Returns the graph and the call's result, whose
    tensors a replay fills. Raises CaptureError; this process then captures no more.
    """
    import torch

    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize(device)
    gc.collect()
    torch.cuda.empty_cache()  # a capture takes new memory, and cannot free what is kept for reuse
    current, side = torch.cuda.current_stream(device), stream or side_stream(device)
    side.wait_stream(current)
    try:
        with torch.cuda.stream(side), _generator_aside(device), no_collection():
            result = _record(graph, call, device, pool)
    except Exception as error:
        _process.has_failed = True
        # As text: a handler that keeps records would keep the traceback's frames, and the GPU memory in them.
        told = "".join(traceback.format_exception(error))
        log.warning("A CUDA graph could not be captured; this process captures no more.\n%s", told)
        raise CaptureError(in_a_line(error)) from error
    current.wait_stream(side)
    return graph, result


def _record(graph: torch.cuda.CUDAGraph, call: Callable[[], Result], device: torch.device, pool: Any) -> Result:
    """The capture itself; raises the first error, with the allocator out of the capture again."""
    try:
        # Other threads of the host may use the GPU meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
    except Exception:
        _leave_pool(device, pool)
        raise
    try:
        result = call()
    except BaseException:
        with suppress(Exception):  # says that the capture is invalid, which is known
            _end(graph, device, pool)
            graph.reset()
        raise
    _end(graph, device, pool)
    return result


def _end(graph: torch.cuda.CUDAGraph, device: torch.device, pool: Any) -> None:
    try:
        graph.capture_end()
    except Exception:
        _leave_pool(device, pool)
        raise


def _leave_pool(device: torch.device, pool: Any) -> None:
    """Ends the allocator's part of a capture, which PyTorch leaves out where the end of the capture fails."""
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    with suppress(RuntimeError):  # it was not entered, or has been left
        torch._C._cuda_endAllocateToPool(index, pool)
        torch._C._cuda_releasePool(index, pool)


@contextmanager
def _generator_aside(device: torch.device) -> Iterator[None]:
    """Has the capture mark another state than that which everybody's random numbers on the device come from."""
    import torch

    index = torch.cuda.current_device() if device.index is None else device.index
    generator = torch.cuda.default_generators[index]
    own = generator.graphsafe_get_state()
    generator.graphsafe_set_state(torch.Generator(device).graphsafe_get_state())
    try:
        yield
    finally:
        generator.graphsafe_set_state(own)


class Replay:
    """A captured call, for inputs of the shapes and dtypes that it was captured with.

    `kept` names inputs that seldom change: one that is the same tensor as last time, unchanged since, is
    not copied again. Graphs of one `pool` share their memory. Raises CaptureError.
    """

    def __init__(self, call: Call, inputs: Tensors, kept: frozenset[str], pool: Any) -> None:
        import torch

        self._kept = kept
        self._last: dict[str, tuple[Any, torch.Tensor]] = {}
        device = next(iter(inputs.values())).device
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = {name: torch.empty(x.shape, dtype=x.dtype, device=device) for name, x in inputs.items()}
            self._fill(inputs)
            self._warm_up(call, device)
            before = torch.cuda.memory_reserved(device)
            self._graph, self._outputs = capture(lambda: call(self._inputs), device, pool)
        self.memory_bytes = max(torch.cuda.memory_reserved(device) - before, 0)
        """Device memory that the graph adds to its pool."""

    def __call__(self, inputs: Tensors) -> Tensors:
        """The outputs for these inputs, in memory of their own."""
        self._fill(inputs)
        self._graph.replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}

    def _warm_up(self, call: Call, device: torch.device) -> None:
        """One call on the capture's stream, in which libraries do their first-use work."""
        import torch

        current, side = torch.cuda.current_stream(device), side_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call(self._inputs)
        current.wait_stream(side)
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()

    def _fill(self, inputs: Tensors) -> None:
        for name, tensor in inputs.items():
            stamp = _stamp(tensor) if name in self._kept else None
            last = self._last.get(name)
            if stamp is not None and last is not None and last[0] == stamp:
                continue
            self._inputs[name].copy_(tensor, non_blocking=True)
            # Held, so that no other tensor can take its address.
            self._last[name] = (stamp, tensor)


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that graphs are captured on: cuBLAS keeps a workspace for every stream it has seen."""
    import torch

    return torch.cuda.Stream(device)


def _stamp(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Equal for equal contents of one memory; None where PyTorch does not count changes."""
    if tensor.is_inference():
        return None
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride()

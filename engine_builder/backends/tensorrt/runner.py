"""Runs a TensorRT plan on its GPU: fixed addresses, an own stream, every answer checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from ....common.device import free_bytes
from ....common.errors import EngineError
from ....common.out_of_memory import says_out_of_memory
from ....common.spec import EngineSpec
from ...graph.onnx_export import empty_tensors
from ..base import LoadNetwork, Runner
from ..cuda_graph import CaptureError, can_capture, capture
from ..engine_weights import EngineWeights
from .library import PLAN, Library, kernel_bytes, make_context, make_logger
from .weight_streaming import Streaming, set_budget

if TYPE_CHECKING:
    from ...store.store import Plan

GIB = 1 << 30
KERNELS = "kernels.cache"
"""File beside the plan with the kernels that RTX compiled for this GPU when the engine first ran."""


class OwnStream:
    """A CUDA stream of our own, for the default one cannot be captured into a graph."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)

    @property
    def handle(self) -> int:
        """The stream as TensorRT takes it."""
        return self._stream.cuda_stream

    @property
    def can_capture(self) -> bool:
        """Whether graphs are captured on this device."""
        return can_capture(self._device)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Makes it PyTorch's current stream, in step with the one before at both ends."""
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        with torch.cuda.stream(self._stream):
            yield
        outer.wait_stream(self._stream)

    def capture(self, call: Callable[[], object]) -> Callable[[], object]:
        """Function that replays the work of `call` on this stream; the capture does not run it. Raises CaptureError."""
        graph, _ = capture(call, self._device, torch.cuda.graph_pool_handle(), self._stream)
        return graph.replay

    def hand_over(self, tensor: torch.Tensor) -> None:
        """Lets the outer stream use a tensor that was made on this one."""
        tensor.record_stream(torch.cuda.current_stream(self._device))

    def synchronize(self) -> None:
        """Waits until all of its work is done."""
        self._stream.synchronize()


class TensorRTRunner(Runner):
    """An execution context over a plan. Inputs are copied to addresses that stay, so that graphs can replay.

    RTX captures CUDA graphs by itself; for the full library PyTorch does. An engine that streams its weights has none.
    One that holds no weights is given the addresses of the network's.
    """

    backend: ClassVar[str] = "tensorrt"

    def __init__(
        self, plan: Plan, spec: EngineSpec, network: LoadNetwork, device: torch.device, library: Library
    ) -> None:
        super().__init__(spec, device)
        self._plan = plan
        self._library = library
        self._weights = EngineWeights(plan, network, device)
        self._logger = make_logger(library)
        self._engine: Any = None
        self._context: Any = None
        self._stream: OwnStream | None = None
        self._bound: dict[str, torch.Tensor] = {}
        self._scratch = torch.empty(0, dtype=torch.uint8)
        self._replay: Callable[[], object] | None = None
        self._kernels: Any = None
        self._side = plan.side(KERNELS)
        self._is_first_run = False
        self._profile = 0
        self._streaming = Streaming()

    @property
    def is_loaded(self) -> bool:
        return self._context is not None and self._weights.are_bound

    @property
    def memory_bytes(self) -> int:
        own = self._plan.manifest.size_bytes - self._streaming.streamed_bytes + self._scratch.nbytes
        return own + self._weights.memory_bytes

    def load(self) -> None:
        if self.is_loaded:
            return
        self._let_go()
        self._weights.bind()
        if self._context is None:
            self._open()

    def _open(self) -> None:
        data = self._plan.read(PLAN)
        stream = OwnStream(self.device)
        with stream.active():
            runtime = self._checked(self._library.module.Runtime(self._logger), "start its runtime")
            engine = self._checked(runtime.deserialize_cuda_engine(data), "load the plan")
            free = free_bytes(self.device)
            streaming = Streaming() if free is None else set_budget(engine, free)
            known = None if self._side is None else self._side.read()
            context, kernels = make_context(self._library, engine, known, streams=streaming.streamed_bytes > 0)
            self._checked(context, "make an execution context")
        self._engine, self._context, self._stream, self._kernels = engine, context, stream, kernels
        self._profile = 0  # where every context begins
        self._streaming, self.warning = streaming, _slower(self.spec, streaming)

    def unload(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()
        self._context = self._engine = self._stream = self._kernels = None
        self._let_go()
        self._weights.release()
        self._streaming, self.warning = Streaming(), None

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        stream = self._stream
        if stream is None:
            raise EngineError("The TensorRT engine has no stream.")
        with stream.active():
            outputs = self._bind(inputs)
            self._execute(stream)
            # The buffers are written again by the next call, while schedulers keep earlier predictions.
            found = {name: tensor.clone() for name, tensor in outputs.items()}
        for tensor in found.values():
            stream.hand_over(tensor)
        if self._is_first_run:
            stream.synchronize()
            self._keep_kernels()
        return found

    def _execute(self, stream: OwnStream) -> None:
        """Runs the bound call: by a CUDA graph from the second call at the same addresses on, where RTX makes none.

        A graph needs the first call before it: in that call the context adapts to the new shapes.
        """
        captures = not self._library.is_rtx and not self._is_first_run and self.warning is None
        if self._replay is None and captures and stream.can_capture:
            try:
                self._replay = stream.capture(lambda: self._enqueue(stream))
            except CaptureError as error:  # a graph is never needed: the first call has worked
                self._goes_without_graph(error)
        if self._replay is not None:
            self._replay()
        else:
            self._enqueue(stream)

    def _enqueue(self, stream: OwnStream) -> None:
        self._checked(self._context.execute_async_v3(stream.handle) or None, "run")

    def _keep_kernels(self) -> None:
        """Stores the kernels compiled for these shapes, so that the next process need not compile them."""
        self._is_first_run = False
        data = kernel_bytes(self._kernels)
        if data is not None and self._side is not None and data != self._side.read():
            self._side.write(data)

    def _bind(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copies the inputs to their addresses, made anew when a shape changes; returns the output buffers."""
        shapes = {name: tuple(tensor.shape) for name, tensor in inputs.items()}
        if any(name not in self._bound or tuple(self._bound[name].shape) != shapes[name] for name in shapes):
            self._rebind(inputs)
        for name, tensor in inputs.items():
            self._bound[name].copy_(tensor, non_blocking=True)
        return {tensor.name: self._bound[tensor.name] for tensor in self.spec.network.outputs}

    def _rebind(self, inputs: dict[str, torch.Tensor]) -> None:
        self._is_first_run = True
        self._let_go()  # so that the next call sets all of it again should anything be refused now
        sizes = self.spec.network.sizes_of(inputs)
        self._choose_profile(sizes)
        bound = {name: torch.empty_like(tensor, device=self.device) for name, tensor in inputs.items()}
        bound |= empty_tensors(self.spec.network.outputs, sizes, self.spec.precision, self.device)
        known = {self._engine.get_tensor_name(number) for number in range(self._engine.num_io_tensors)}
        for name in inputs.keys() & known:
            shape = tuple(inputs[name].shape)
            self._checked(self._context.set_input_shape(name, shape) or None, f"take {name} as {list(shape)}")
        addressed = {**self._weights.inputs, **bound}
        for name in addressed.keys() & known:
            address = addressed[name].data_ptr()
            self._checked(self._context.set_tensor_address(name, address) or None, f"take the address of {name}")
        self._scratch = torch.empty(
            int(self._context.update_device_memory_size_for_shapes()), dtype=torch.uint8, device=self.device
        )
        self._context.set_device_memory(self._scratch.data_ptr(), self._scratch.nbytes)
        self._bound = bound

    def _let_go(self) -> None:
        """Drops the memory of the last shapes, which the stream's own order keeps for the work that uses it still."""
        self._replay = None
        self._bound, self._scratch = {}, torch.empty(0, dtype=torch.uint8)

    def _choose_profile(self, sizes: dict[str, int]) -> None:
        """Switches to the optimization profile that serves the sizes; shapes and addresses are set anew after it."""
        found = next(number for number, shapes in enumerate(self.spec.profile.profiles) if shapes.fits(sizes))
        if found != self._profile and self._stream is not None:
            switched = self._context.set_optimization_profile_async(found, self._stream.handle)
            self._checked(switched or None, f"switch to its profile {found}")
            self._profile = found

    def _checked(self, answer: Any, what: str) -> Any:
        """`answer`, unless it is None: then out of memory as PyTorch's own error, anything else as EngineError."""
        if answer is not None:
            return answer
        reason = self._logger.last_error
        if says_out_of_memory(reason):
            raise torch.cuda.OutOfMemoryError(f"TensorRT could not {what}: {reason}")
        raise EngineError(f"The TensorRT engine of {self.spec.network.component} could not {what}: {reason}")


def _slower(spec: EngineSpec, streaming: Streaming) -> str | None:
    """Warning for the user of an engine that streams weights; None for one that does not."""
    if not streaming.streamed_bytes:
        return None
    streamed, all_of_them = (size / GIB for size in (streaming.streamed_bytes, streaming.streamable_bytes))
    return (
        f"{streamed:.1f} of {all_of_them:.1f} GiB of {spec.network.component}'s weights do not fit on the GPU and are "
        "brought from host memory at every call, which is slower."
    )

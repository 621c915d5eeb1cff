"""One call captured as a CUDA graph: a replay costs one launch instead of a thousand."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

Call = Callable[[dict[str, "torch.Tensor"]], dict[str, "torch.Tensor"]]


class Replay:
    """A captured call, for inputs of the shapes and dtypes that it was captured with.

    `kept` names inputs that seldom change: one that is the same tensor as last time, unchanged since, is
    not copied again. Raises whatever the capture raises.
    """

    def __init__(self, call: Call, inputs: dict[str, torch.Tensor], kept: frozenset[str]) -> None:
        import torch

        self._kept = kept
        self._last: dict[str, tuple[Any, torch.Tensor]] = {}
        device = next(iter(inputs.values())).device
        with torch.inference_mode(False), torch.no_grad():
            self._inputs = {name: torch.empty(x.shape, dtype=x.dtype, device=device) for name, x in inputs.items()}
            self._fill(inputs)
            self._warm_up(call, device)
            before = torch.cuda.memory_reserved(device)
            self._graph = torch.cuda.CUDAGraph()
            # Other threads of the host may use the GPU meanwhile.
            with torch.cuda.graph(self._graph, stream=_side_stream(device), capture_error_mode="thread_local"):
                self._outputs = call(self._inputs)
        self.memory_bytes = max(torch.cuda.memory_reserved(device) - before, 0)
        """Device memory that the graph holds for its intermediate results."""

    def __call__(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs for these inputs, in memory of their own."""
        self._fill(inputs)
        self._graph.replay()
        return {name: tensor.clone() for name, tensor in self._outputs.items()}

    def _warm_up(self, call: Call, device: torch.device) -> None:
        """One call on the capture's stream, where libraries make what they make on first use."""
        import torch

        current, side = torch.cuda.current_stream(device), _side_stream(device)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            call(self._inputs)
        current.wait_stream(side)

    def _fill(self, inputs: dict[str, torch.Tensor]) -> None:
        for name, tensor in inputs.items():
            stamp = _stamp(tensor) if name in self._kept else None
            last = self._last.get(name)
            if stamp is not None and last is not None and last[0] == stamp:
                continue
            self._inputs[name].copy_(tensor, non_blocking=True)
            # Held, so that no other tensor can come to lie at its address.
            self._last[name] = (stamp, tensor)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """The one stream that graphs are captured on: cuBLAS keeps a workspace for every stream it has seen."""
    import torch

    return torch.cuda.Stream(device)


def _stamp(tensor: torch.Tensor) -> tuple[Any, ...] | None:
    """Equal for equal contents of one memory; None where PyTorch does not count changes."""
    if tensor.is_inference():
        return None
    return tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride()

"""Two faults of PyTorch's compiler, put right for as long as an engine is built.

Each lies in a function that PyTorch does not promise to keep. Where a version has it no longer, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@contextmanager
def layouts_as_run(device: torch.device) -> Iterator[None]:
    """Tracing for a GPU sees convolutions with the memory layouts that they have when they run.

    torch.export switches cuDNN off while it traces, and records results in layouts that cuDNN does not give.
    Fake tensors remember what was recorded, the compiler asks them, and the engine would read shuffled values.
    """
    if device.type != "cuda":
        yield
        return
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.export import _trace

    FakeTensorMode.cache_clear()  # others may have exported before
    with _replaced(_trace, "_ignore_backend_decomps", lambda _: nullcontext):
        yield


@contextmanager
def arrays_declared() -> Iterator[None]:
    """Every array of sizes that generated code uses is declared in it.

    The code is written twice. What has been declared is remembered by the address of the function that writes,
    and that of the second time may lie where that of the first one was: then the declaration is missing, the
    C++ compiler fails, and the next attempt may succeed.
    """
    from torch._inductor.codegen import cpp_wrapper_cpu

    def holding(original: Callable[..., str]) -> Callable[..., str]:
        writers: dict[tuple[int, str], Callable[..., None]] = {}

        def codegen_int_array_var(
            self: Any, array: str, writeline: Callable[..., None], *rest: Any, **named: Any
        ) -> str:
            owner = getattr(writeline, "__self__", writeline)
            # Held until all is compiled, so that no other can take its place.
            held = writers.setdefault((id(owner), getattr(writeline, "__name__", "")), writeline)
            return original(self, array, held, *rest, **named)

        return codegen_int_array_var

    with _replaced(cpp_wrapper_cpu.CppWrapperCpu, "codegen_int_array_var", holding):
        yield


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """An attribute exchanged for what `make` makes of it, if the owner has it."""
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)

"""Faults of PyTorch's compiler, put right for as long as an engine is built: two in its results, two in its pace.

Each fault is in a private function of PyTorch. In a version without that function, nothing is done.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import cache
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

    The code is written twice. Declarations are remembered by the address of the function that writes, and the second
    function may have the address of the first one: then the declaration is missing, the C++ compiler fails, and
    the next attempt may succeed.
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
def vectors_untried(device: torch.device) -> Iterator[None]:
    """A GPU's engine is compiled without trying out the CPU's vector instructions, which it has no use for.

    Each of up to six sets is tried by starting another Python that imports PyTorch: 4 to 5 s each were seen.
    `cpp.vec_isa_ok` answers for the sets themselves, not for their extensions.
    """
    if device.type == "cpu":
        yield
        return
    from torch._inductor import cpu_vec_isa

    with _replaced(cpu_vec_isa, "valid_vec_isa_list", lambda _: lambda: []):
        yield


@contextmanager
def mutations_remembered() -> Iterator[None]:
    """The arguments that a Triton kernel writes to are found once for each kind of its arguments.

    PyTorch finds them by translating the kernel's source at each of its calls in each pass over the graph:
    nearly half the time in which I2VGen-XL's denoiser was traced and lowered.
    """
    from torch._higher_order_ops import triton_kernel_wrap

    with (
        _replaced(triton_kernel_wrap, "identify_mutated_tensors", remembered),
        _replaced(triton_kernel_wrap, "identify_accessed_tensors", remembered),  # its name from PyTorch 2.12 on
    ):
        yield


@cache
def remembered(original: Callable[..., Any]) -> Callable[..., Any]:
    """The function of a kernel and its arguments, asked once in a process for each kernel and kinds of arguments."""
    answers: dict[Hashable, tuple[Any, Any]] = {}

    def answer(kernel: Any, arguments: Mapping[str, Any], *rest: Any) -> Any:
        kinds = tuple((name, _kind(value)) for name, value in arguments.items())
        key = (id(kernel), kinds, repr(rest))
        if key not in answers:
            answers[key] = kernel, original(kernel, arguments, *rest)  # a kernel that is held keeps its id
        return copy(answers[key][1])

    return answer


def _kind(value: Any) -> Hashable:
    """The properties of an argument on which a kernel's written arguments depend.

    No kernel of the pack chooses by the value of a number: the type of a tensor or a number is enough.
    """
    import torch

    if isinstance(value, torch.Tensor):
        return "tensor", value.dtype
    if hasattr(value, "get_dtype"):  # a tensor as the compiler's later passes have it
        return "tensor", value.get_dtype()
    return type(value), str(value) if isinstance(value, bool | str | torch.dtype) else ""


@contextmanager
def _replaced(owner: Any, name: str, make: Callable[[Any], Any]) -> Iterator[None]:
    """Replaces an attribute by `make`'s result for it until the block ends, if the owner has it."""
    original = getattr(owner, name, None)
    if original is None:
        yield
        return
    setattr(owner, name, make(original))
    try:
        yield
    finally:
        setattr(owner, name, original)

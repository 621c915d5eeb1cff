"""What is worked around in PyTorch's compiler."""

import itertools
from contextlib import nullcontext
from importlib import import_module
from typing import Any

import torch
from torch.utils._ordered_set import OrderedSet

from i2v_tensorrt.engine_builder.backends.inductor import torch_workarounds
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs

from ...helpers.inductor_toys import Mixed, mixed_spec
from ...helpers.toys import CPU

CUDA = torch.device("cuda")


class Switched(Mixed):
    """Remembers what it was traced with."""

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        object.__setattr__(self, "cudnn", torch.backends.cudnn.enabled)
        return super().forward(sample, strength)


def test_layouts_are_traced_as_they_are_when_the_engine_runs() -> None:
    """An engine that was traced without cuDNN read its convolutions' results in an order that cuDNN does not give."""
    network = Switched()
    inputs = example_inputs(mixed_spec(), mixed_spec().profile.optimum)
    with torch_workarounds.layouts_as_run(CUDA):
        torch.export.export(network, (), inputs)
    assert network.cudnn is True
    assert import_module("torch.export._trace")._ignore_backend_decomps is not nullcontext


def test_every_array_is_declared_both_times_that_code_is_written() -> None:
    """The writer of the second time lies where that of the first one was: its declaration went missing."""
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
    from torch._inductor.utils import IndentedBuffer

    wrapper = CppWrapperCpu.__new__(CppWrapperCpu)
    wrapper.codegen_int_array_var_cache = {}
    wrapper.declared_int_array_vars = OrderedSet()
    wrapper.int_array_id = itertools.count()
    texts = [IndentedBuffer(), IndentedBuffer()]
    with torch_workarounds.arrays_declared():
        names = [wrapper.codegen_int_array_var("{4L, 2L}", text.writeline, True) for text in texts]
        again = [wrapper.codegen_int_array_var("{4L, 2L}", text.writeline, True) for text in texts]
    assert again == names
    for name, text in zip(names, texts, strict=True):
        assert text.getvalue().count(f"{name}[] = {{4L, 2L}}") == 1


def test_a_gpus_engine_tries_no_vector_instructions_of_the_cpu() -> None:
    """Trying them out took 30 of the 60 s in which the smallest network was compiled for a GPU."""
    from torch._inductor.cpu_vec_isa import invalid_vec_isa, pick_vec_isa

    with torch_workarounds.vectors_untried(CUDA):
        assert pick_vec_isa() is invalid_vec_isa
    with torch_workarounds.vectors_untried(CPU):
        assert pick_vec_isa() is not invalid_vec_isa


def test_what_a_kernel_writes_to_is_found_out_once_for_each_kind_of_arguments() -> None:
    asked: list[dict[str, Any]] = []

    def find(kernel: object, arguments: dict[str, Any], tma: dict[str, Any]) -> list[str]:
        asked.append(arguments)
        return ["out"]

    ask, kernel = torch_workarounds.remembered(find), object()
    half = {"out": torch.zeros(2, dtype=torch.float16), "block": 64}
    answer = ask(kernel, half, {})
    answer.append("spoilt")  # the answer is the caller's own
    assert ask(kernel, {**half, "out": torch.ones(5, dtype=torch.float16)}, {}) == ["out"]
    assert len(asked) == 1
    for other, arguments, tma in (
        (object(), half, {}),
        (kernel, {**half, "out": torch.zeros(2)}, {}),
        (kernel, {**half, "block": True}, {}),
        (kernel, {**half, "block": False}, {}),
        (kernel, {**half, "block": None}, {}),
        (kernel, half, {"out": "stable"}),
    ):
        ask(other, arguments, tma)
    assert len(asked) == 7


def test_pytorch_asks_by_a_name_that_is_replaced() -> None:
    wrap = import_module("torch._higher_order_ops.triton_kernel_wrap")
    names = [name for name in ("identify_mutated_tensors", "identify_accessed_tensors") if hasattr(wrap, name)]
    assert names
    before = {name: getattr(wrap, name) for name in names}
    with torch_workarounds.mutations_remembered():
        assert all(getattr(wrap, name) is not before[name] for name in names)
    assert {name: getattr(wrap, name) for name in names} == before

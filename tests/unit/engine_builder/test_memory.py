"""How libraries say that memory ran out."""

import pytest
import torch

from i2v_tensorrt.common.out_of_memory import is_out_of_memory, is_short, says_out_of_memory


class AcceleratorError(RuntimeError):
    """As PyTorch raises it for an error of the driver's: with a number, and the driver's words."""

    def __init__(self, words: str, number: int) -> None:
        super().__init__(words)
        self.error_code = number


RAN_OUT = {
    "PyTorch on a GPU": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    "cudaMallocAsync": torch.OutOfMemoryError("Allocation on device 0 would exceed allowed memory. (out of memory)"),
    "the driver by number": AcceleratorError("CUDA error: memory", 2),
    "the driver by words": RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported later."),
    "cuBLAS": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "cuDNN": RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    "cuDNN 9": RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
    "Apple": RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB, max allowed: 1.10 GB)."),
    "Intel": RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    "PyTorch on a CPU": RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "C++": RuntimeError("std::bad_alloc"),
    "Python": MemoryError(),
}
OTHERS = {
    "a wrong argument": AcceleratorError("CUDA error: invalid argument", 1),
    "a wild pointer": AcceleratorError("CUDA error: an illegal memory access was encountered", 700),
    "a capture": RuntimeError("INTERNAL ASSERT FAILED at CUDAMallocAsyncAllocator.cpp: memory may be corrupted"),
    "shapes": RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
    "no RuntimeError": ValueError("out of memory"),
}


@pytest.mark.parametrize("kind", [*RAN_OUT, *OTHERS])
def test_memory_that_ran_out_is_known_and_other_errors_are_not_taken_for_it(kind: str) -> None:
    assert is_out_of_memory({**RAN_OUT, **OTHERS}[kind]) == (kind in RAN_OUT)


def test_the_sentences_of_libraries_that_run_engines() -> None:
    for reason, means_it in (
        ("Failed to allocate memory for requested buffer of size 1024", True),  # ONNX Runtime
        ("Requested amount of GPU memory (1024 bytes) could not be allocated.", True),  # TensorRT
        ("OutOfMemory: no engine could be deserialized; out of memory", True),
        ("Engine deserialization failed: the plan is for another GPU", False),
    ):
        assert says_out_of_memory(reason) is means_it


def test_a_cpu_is_never_short() -> None:
    assert not is_short(torch.device("cpu"), 1 << 60)

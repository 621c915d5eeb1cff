"""Which GPU shares a clip with the first one, and the sentence where none does."""

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.runtime.devices.second_gpu import Gpu, choose_second

GIB = 1 << 30


def gpu(index: int, arch: str = "sm_90", gib: float = 80) -> Gpu:
    return Gpu(torch.device("cuda", index), f"card {index}", arch, int(gib * GIB))


FIRST = torch.device("cuda", 0)


@pytest.mark.parametrize("wish", ["auto", "1"])
def test_one_device_is_the_default(wish: str) -> None:
    found = choose_second(wish, FIRST, [gpu(0), gpu(1)])
    assert found.device is None
    assert found.reason is None


def test_the_second_is_the_next_like_the_first() -> None:
    found = choose_second("2", torch.device("cuda", 1), [gpu(0, "sm_89"), gpu(1), gpu(2, gib=40), gpu(3, gib=79)])
    assert found.device == torch.device("cuda", 3)
    assert found.reason is None


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ([], "Expected a second GPU, found one"),
        ([gpu(1, "sm_89")], "Expected a second GPU of sm_90, found cuda:1 (card 1) of sm_89."),
        ([gpu(1, gib=40)], "Expected a second GPU of 80.0 GiB, found cuda:1 (card 1) of 40.0 GiB."),
    ],
)
def test_another_gpu_is_refused_in_a_sentence(others: list[Gpu], words: str) -> None:
    found = choose_second("2", FIRST, [gpu(0), *others])
    assert found.device is None
    assert found.reason is not None
    assert words in found.reason
    assert found.reason.endswith("ne device makes the clip.")


def test_a_cpu_is_one_device() -> None:
    found = choose_second("2", torch.device("cpu"), [])
    assert found.device is None
    assert found.reason == "Two devices are for CUDA GPUs, found cpu: one device makes the clip."


def test_another_number_is_refused() -> None:
    with pytest.raises(InputError, match="one of auto, 1, 2, found '3'"):
        choose_second("3", FIRST, [])

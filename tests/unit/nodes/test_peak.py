"""What a node says of the GPU's memory."""

import pytest
import torch

from i2v_tensorrt.nodes.host.peak_memory import PeakMemory

GPU = torch.device("cuda", 1)
GIB = 2**30


class Allocator:
    """What PyTorch holds on a GPU, and the most that it has held since it was asked to count anew."""

    def __init__(self, held: float, peak: float) -> None:
        self.held, self.peak = held, peak

    def hold(self, held: float) -> None:
        self.held, self.peak = held, max(held, self.peak)

    def reset(self) -> None:
        self.peak = self.held


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    made = Allocator(held=2.65, peak=9)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: int(made.held * GIB) if device == GPU else 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: int(made.peak * GIB) if device == GPU else 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: made.reset() if device == GPU else None)
    return made


def test_on_a_gpu_it_is_the_most_since_the_work_began_and_what_was_there(allocator: Allocator) -> None:
    peak = PeakMemory(GPU)
    assert peak.lines() == ["at most 2.65 GiB of VRAM by PyTorch, 2.65 of it held before"]
    allocator.hold(5.31)
    allocator.hold(1)
    assert peak.lines() == ["at most 5.31 GiB of VRAM by PyTorch, 2.65 of it held before"]


def test_what_went_before_the_most_was_reached_is_not_said_to_be_in_it(allocator: Allocator) -> None:
    peak = PeakMemory(GPU)
    allocator.hold(0)
    allocator.reset()  # as another node does while this one works
    allocator.hold(1.5)
    assert peak.lines() == ["at most 1.50 GiB of VRAM by PyTorch"]


def test_elsewhere_there_is_nothing_to_tell() -> None:
    assert PeakMemory(torch.device("cpu")).lines() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_tensor_that_is_gone_has_been_held() -> None:
    device = torch.device("cuda", 0)
    before = torch.empty(GIB, dtype=torch.uint8, device=device)
    peak = PeakMemory(device)
    torch.empty(3 * GIB, dtype=torch.uint8, device=device)
    (line,) = peak.lines()
    most, there = (float(word) for word in line.split() if word[0].isdigit())
    assert most - there >= 3 and there >= before.nbytes / GIB

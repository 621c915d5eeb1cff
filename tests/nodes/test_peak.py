"""What a node says of the GPU's memory."""

import pytest
import torch

from i2v_tensorrt.nodes.peak import PeakMemory

GPU = torch.device("cuda", 1)


def test_on_a_gpu_it_is_the_most_since_the_work_began(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {GPU: 9 * 2**30}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: held.update({device: 2**30}))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: held[device])
    peak = PeakMemory(GPU)
    assert peak.lines() == ["at most 1.00 GiB of VRAM by PyTorch"]
    held[GPU] = 5 * 2**29
    assert peak.lines() == ["at most 2.50 GiB of VRAM by PyTorch"]


def test_elsewhere_there_is_nothing_to_tell() -> None:
    assert PeakMemory(torch.device("cpu")).lines() == []


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
def test_a_tensor_that_is_gone_has_been_held() -> None:
    device = torch.device("cuda", 0)
    peak = PeakMemory(device)
    torch.empty(3 * 2**30, dtype=torch.uint8, device=device)
    (line,) = peak.lines()
    assert float(line.split()[2]) >= 3

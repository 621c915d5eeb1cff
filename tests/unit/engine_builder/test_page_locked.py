"""Where the system locks no more memory, plain memory takes the copies."""

from typing import Any

import pytest
import torch

from i2v_tensorrt.common.page_locked import page_locked, page_locked_empty
from i2v_tensorrt.engine_builder.backends import block_stream


@pytest.fixture(autouse=True)
def locks_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Says what CUDA says where a container or WSL has no page-locked memory left."""
    empty = torch.empty

    def refuse(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("CUDA error: out of memory (cudaHostAlloc)")

    monkeypatch.setattr(torch, "empty", lambda *a, **k: refuse() if k.pop("pin_memory", False) else empty(*a, **k))
    monkeypatch.setattr(torch.Tensor, "pin_memory", refuse)


def test_plain_memory_serves() -> None:
    found = page_locked_empty(torch.Size([2, 3]), torch.float16)
    assert (found.shape, found.dtype, found.is_pinned()) == ((2, 3), torch.float16, False)
    tensor = torch.rand(3)
    assert page_locked(tensor) is tensor


def test_streamed_weights_lie_in_plain_memory_then(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_stream, "free_host_bytes", lambda: 1 << 40)
    weights = {0: [torch.rand(4), torch.empty(0)], 1: [torch.rand(2, 2)]}
    found = block_stream._pinned(weights)
    assert all(a is b for number in weights for a, b in zip(found[number], weights[number], strict=True))

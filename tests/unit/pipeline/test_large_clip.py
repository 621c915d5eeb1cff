"""Clips in large pages: ordinary tensors, whose memory goes with them, and ordinary memory where there is none."""

from __future__ import annotations

import gc
import mmap
import os
import sys
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks.frames_beside_core import resident_bytes
from i2v_tensorrt.pipeline.media import large_clip
from i2v_tensorrt.pipeline.media.large_clip import LARGE_BYTES, empty_clip
from i2v_tensorrt.tests.helpers.interrupts import wait_for

FRAMES, HEIGHT, WIDTH = 8, 1024, 1024


@pytest.mark.parametrize("frames", [1, FRAMES], ids=["small", "large"])
def test_it_is_an_ordinary_tensor(frames: int) -> None:
    clip = empty_clip(frames, HEIGHT, WIDTH)
    assert (4 * clip.numel() >= LARGE_BYTES) is (frames == FRAMES)
    clip.fill_(0.5)
    clip[-1] = 1.0
    assert clip.shape == (frames, HEIGHT, WIDTH, 3) and clip.dtype == torch.float32 and clip.is_contiguous()
    assert clip[-1].min() == 1.0 and clip.numpy()[0].max() == clip[0].max()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such pages")
def test_its_memory_is_there_soon_and_holds_what_was_written() -> None:
    gc.collect()
    before = resident_bytes(os.getpid())
    clip = empty_clip(FRAMES, HEIGHT, WIDTH)
    clip[-1], clip[0] = 3.0, 4.0
    wait_for(lambda: resident_bytes(os.getpid()) - before > 0.9 * clip.nbytes)
    assert clip[-1].min() == clip[-1].max() == 3.0 and clip[0].min() == 4.0 and clip[1:-1].max() == 0


def test_a_system_that_populates_nothing_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_clip, "POPULATE_WRITE", -1)
    assert empty_clip(FRAMES, HEIGHT, WIDTH).fill_(2.0).mean() == 2.0


def test_its_memory_goes_with_its_last_view() -> None:
    gc.collect()
    before = resident_bytes(os.getpid())
    view = empty_clip(FRAMES, HEIGHT, WIDTH).fill_(1.0)[3]
    assert resident_bytes(os.getpid()) - before > LARGE_BYTES
    assert view.sum() == view.numel()
    del view
    gc.collect()
    wait_for(lambda: resident_bytes(os.getpid()) - before < LARGE_BYTES // 4)


@pytest.mark.parametrize("missing", ["pages", "memory"])
def test_a_system_that_gives_none(monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    class Refusing(mmap.mmap):
        def __new__(cls, *arguments: Any, **named: Any) -> Refusing:
            if missing == "memory":
                raise OSError(12, "Cannot allocate memory")
            return super().__new__(cls, *arguments, **named)

        def madvise(self, *_: Any) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Refusing)
    clip = empty_clip(FRAMES, HEIGHT, WIDTH).fill_(2.0)
    assert clip.shape == (FRAMES, HEIGHT, WIDTH, 3) and clip.mean() == 2.0

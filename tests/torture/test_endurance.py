"""A clip whose memory runs out, or whose user interrupts, at any point; and clips again and again."""

from __future__ import annotations

import errno
import gc
import json
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.errors import I2VError
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising

from ..helpers.clips import Clips, eager_engines
from ..helpers.counts import Evidence, counted
from ..helpers.faults import Call, Faults, run_child
from ..helpers.refusals import assert_one_sentence

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

REQUEST = ClipRequest(Image.new("RGB", (70, 50), "teal"), "a boat", "blurry", 64, 64, 4, 8)
DENOISING = Denoising(5, 9.0, SamplerSettings(3))
LARGE_BYTES = 4096
"""Allocations that may fail."""
SLOPE_LIMIT_BYTES = 4 << 10
"""By how much the memory may grow with a cycle beside what safetensors keeps; the networks of a clip have 12 MB."""
BLOCK_BYTES = 32
"""What Python takes for an integer."""
SETTLING_BYTES = 8 << 20
"""By how much it grows in all until the allocator has settled."""


class Interrupted(Exception):
    """What a host raises when its user interrupts."""


def clips_of(checkpoint: Path, store: Path) -> Clips:
    return Clips(eager_engines(checkpoint, store), REQUEST, DENOISING, 2)


@pytest.fixture
def clips(tiny_folder: Path, tmp_path: Path) -> Clips:
    return clips_of(tiny_folder, tmp_path)


def run_out_of_memory(checkpoint: str, store: str, count: str) -> None:
    """In the child: one allocation after another fails, in every stage; the next run always succeeds."""
    faults, draw, came = Faults(), random.Random(int(count)), Counter[str]()
    clips = clips_of(Path(checkpoint), Path(store))
    expected = clips.make()
    lengths = {}

    def armed(at: int, *, loaded: bool) -> AbstractContextManager[None]:
        if not loaded:
            clips.engines.unload()
        return faults.armed(Call.ALLOCATE, errno.ENOMEM, at, least_bytes=LARGE_BYTES)

    for loaded in (True, False):
        with armed(0, loaded=loaded):
            clips.make()
        lengths[loaded] = faults.calls
    for number in range(int(count)):
        loaded = number % 4 > 0
        with armed(draw.randint(1, lengths[loaded]), loaded=loaded):
            came[outcome(clips, expected)] += 1
        assert faults.hits <= 1
        assert torch.equal(clips.make(), expected)
    print(json.dumps({"came": came, "places": lengths[False]}))  # noqa: T201 - for the parent


def outcome(clips: Clips, expected: torch.Tensor) -> str:
    """How a clip ends whose memory runs out once."""
    try:
        found = clips.make()
    except I2VError as error:
        assert_one_sentence(str(error), 2000)
        return "refused in a sentence"
    assert (found - expected).abs().max() <= 1e-5
    return "made in smaller chunks"


@counted(4, 200)
def test_memory_may_run_out_at_any_point(
    shim: Path, tiny_folder: Path, tmp_path: Path, count: int, evidence: Evidence
) -> None:
    found = json.loads(run_child(shim, __name__, "run_out_of_memory", tiny_folder, tmp_path, count).splitlines()[-1])
    assert sum(found["came"].values()) == count
    told = ", ".join(f"{number} {end}" for end, number in sorted(found["came"].items()))
    told += f", at {found['places']} places; the next run is equal"
    evidence("memory ran out while a clip is made", count, told)


@counted(6, 200)
def test_an_interruption_may_come_at_any_point(clips: Clips, count: int, evidence: Evidence) -> None:
    reports, draw = 0, random.Random(count)

    def heed() -> None:
        nonlocal reports
        reports += 1
        if reports == stop_at:
            raise Interrupted

    stop_at = 0
    expected = clips.make(heed)
    total = reports
    for _ in range(count):
        reports, stop_at = 0, draw.randint(1, total)
        with pytest.raises(Interrupted):
            clips.make(heed)
        assert reports == stop_at, "nothing went on"
        assert torch.equal(clips.make(), expected)
    evidence("clips interrupted", count, f"at any of {total} points; nothing went on, the next run is equal")


def kept_by_safetensors(checkpoint: Path) -> int:
    """Bytes that the library itself never gives back once it has read all weights: in 0.8.0 two integers a tensor."""
    from safetensors.torch import load_file

    def read() -> int:
        for path in checkpoint.rglob("*.safetensors"):
            load_file(path)
        gc.collect()
        return sys.getallocatedblocks()

    read()
    return max(0, (read() - read()) * -BLOCK_BYTES)


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> Callable[[], set[threading.Thread]]:
    """Gives the running threads that the test, or a thread of its own, has started: other tests leave some behind."""
    own, start = {threading.current_thread()}, threading.Thread.start

    def noted(thread: threading.Thread) -> None:
        if threading.current_thread() in own:
            own.add(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", noted)
    return lambda: {thread for thread in own if thread.is_alive()}


@counted(8, 500)
def test_clips_again_and_again_leave_nothing(
    clips: Clips,
    tiny_folder: Path,
    count: int,
    evidence: Evidence,
    tmp_path: Path,
    own_threads: Callable[[], set[threading.Thread]],
) -> None:
    """Loaded, run and unloaded each time."""
    import psutil

    own = psutil.Process()
    others = own.children(recursive=True)  # a server that tests share, say
    memory, handles, threads = [], [], list[set[threading.Thread]]()
    for _ in range(count):
        clips.make()
        clips.engines.unload()
        memory.append(own.memory_info().rss)
        handles.append(own.num_fds() if hasattr(own, "num_fds") else 0)
        threads.append(own_threads())
    warm = count // 4
    librarys = kept_by_safetensors(tiny_folder)
    slope = slope_of(memory[warm:]) - librarys
    assert slope * (count - warm) < SETTLING_BYTES + SLOPE_LIMIT_BYTES * count
    assert handles[-1] <= handles[warm]
    assert set.intersection(*threads[-3:]) <= threads[warm], "one may be ending just now, but not three times in a row"
    assert set(own.children(recursive=True)) <= set(others)
    assert list(tmp_path.rglob("*.*")) == []
    figures = f"{slope / 1024:.1f} KiB a cycle beside {librarys / 1024:.1f} that safetensors keeps, "
    figures += f"{handles[-1]} files and {len(threads[-1])} threads as after the first"
    evidence("clips loaded, run and unloaded", count, figures)


def slope_of(values: list[int]) -> float:
    """The least squares line's rise with each value."""
    middle, mean = (len(values) - 1) / 2, sum(values) / len(values)
    above = sum((number - middle) * (value - mean) for number, value in enumerate(values))
    return above / sum((number - middle) ** 2 for number in range(len(values)))

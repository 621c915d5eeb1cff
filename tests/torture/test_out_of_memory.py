"""Memory that runs out while a clip is made, as each library says it and as it is: the next clip is as if it had not.

The full counts need a GPU:
`pytest -m torture -o log_cli=true --log-cli-level=INFO tests/torture/test_out_of_memory.py`.
"""

from __future__ import annotations

import gc
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.errors import I2VError
from i2v_tensorrt.common.out_of_memory import is_out_of_memory
from i2v_tensorrt.common.pack_paths import BUNDLED
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.demo_model import demo_model

from ..helpers.clips import Clips, eager_engines
from ..helpers.counts import Evidence, counted, note
from ..live.device import HALF_PSNR, decibels

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers gives tensors to numpy

GPU = torch.cuda.is_available()
WORDINGS: tuple[Callable[[], BaseException], ...] = (
    lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    lambda: RuntimeError("CUDA error: out of memory"),
    lambda: RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    lambda: RuntimeError("CUDA driver error: CUDA_ERROR_OUT_OF_MEMORY"),
    lambda: RuntimeError("std::bad_alloc"),
    lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
    MemoryError,
)
"""How PyTorch, CUDA's libraries, the driver, C++ and Python say it."""
SENTENCE = re.compile(
    r"(Encoding for|Denoising|Decoding) .+ needs (about|more than) .+ of memory.*: .+(would fit|choose less)\."
)
HELD_BYTES = 64 << 20
"""What PyTorch may hold more of after an error than before: workspaces of its libraries."""
BLOCK_BYTES = 10 << 20
"""From so much on PyTorch asks the driver for what a tensor takes, in pages of 2 MiB; for less it asks for 20 MiB."""


@pytest.fixture
def clips(tiny_folder: Path, tmp_path: Path) -> Iterator[Clips]:
    """The bundled model's on a GPU, the tiny one's elsewhere."""
    demo, side, frames = demo_model(BUNDLED), 64, 4
    if GPU:
        side, frames = demo.side, demo.num_frames
    gpu = (BUNDLED, tmp_path, "fp16", "cuda:0")
    engines = eager_engines(*gpu) if GPU else eager_engines(tiny_folder, tmp_path)
    request = ClipRequest(Image.new("RGB", (70, 50), "teal"), demo.prompts[0], "", side, side, frames, demo.fps)
    yield Clips(engines, request, Denoising(5, demo.guidance_scale, SamplerSettings(2)), frames)
    engines.unload()
    settled()


def settled() -> int:
    """What PyTorch's tensors hold of the GPU, in bytes, with all that it only keeps for later given back."""
    gc.collect()
    if not GPU:
        return 0
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return torch.cuda.memory_allocated()


class Injected:
    """Raises an error at one of the calls of modules, all of which it counts."""

    def __init__(self) -> None:
        self.calls = self.hits = 0

    @contextmanager
    def armed(self, at: int, make: Callable[[], BaseException] = MemoryError) -> Iterator[None]:
        """Within the block the call number `at` raises; a 0 is none of them."""
        self.calls = self.hits = 0

        def count(module: torch.nn.Module, args: object) -> None:
            self.calls += 1
            if self.calls == at:
                self.hits += 1
                raise make()

        handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
        try:
            yield
        finally:
            handle.remove()


def outcome(clips: Clips, expected: torch.Tensor) -> str:
    """How a clip ends whose memory runs out."""
    try:
        found = clips.make()
    except (I2VError, RuntimeError) as error:
        assert isinstance(error, I2VError) or is_out_of_memory(error), error
        assert SENTENCE.match(str(error)), error
        return "refused in a sentence"
    assert found.shape == expected.shape
    assert alike(found, expected) >= HALF_PSNR
    return "made"


def alike(one: torch.Tensor, other: torch.Tensor) -> float:
    """What two clips are alike by, in dB."""
    return decibels(float((one - other).double().square().mean()))


def undisturbed(clips: Clips) -> tuple[torch.Tensor, float]:
    """The clip, and how far apart two of them are where nothing runs out."""
    clips.make()  # libraries choose their algorithms
    first = clips.make()
    return first, max(float((clips.make() - first).abs().max()) for _ in range(2))


class Trial:
    """Clips whose memory runs out, each followed by one that has all it needs."""

    def __init__(self, name: str, clips: Clips) -> None:
        self.name, self.clips, self.came, self.grown = name, clips, Counter[str](), 0
        self.expected, self.noise = undisturbed(clips)
        self.apart, self.least_db = 0.0, math.inf

    def run(self, shortage: AbstractContextManager[object]) -> None:
        """One of each."""
        before = settled()
        with shortage:
            self.came[outcome(self.clips, self.expected)] += 1
        found = self.clips.make()
        self.apart = max(self.apart, float((found - self.expected).abs().max()))
        self.least_db = min(self.least_db, alike(found, self.expected))
        self.grown = max(self.grown, settled() - before)
        note(self.name, {name: getattr(self, name) for name in ("came", "apart", "noise", "grown")})
        assert self.grown <= HELD_BYTES

    def told(self) -> str:
        came = ", ".join(f"{number} {end}" for end, number in sorted(self.came.items()))
        apart = f"{self.apart:.1e} apart ({self.least_db:.0f} dB), undisturbed ones {self.noise:.1e}"
        equal = "equal" if self.apart == 0 else apart
        return f"{came}; the next clip is {equal}; at most {self.grown >> 20} MiB more held"


def places_of(clips: Clips, injected: Injected) -> list[range]:
    """The numbers of the calls in each stage of a clip."""
    ends = [0]
    with injected.armed(0):
        clips.make(next_stage=lambda: ends.append(injected.calls))
    return [range(first + 1, last + 1) for first, last in pairwise([*ends, injected.calls])]


@counted(4, 200)
def test_an_error_of_missing_memory_may_come_from_any_module(clips: Clips, count: int, evidence: Evidence) -> None:
    injected, draw = Injected(), random.Random(count)
    stages, trial = places_of(clips, injected), Trial("injected", clips)
    for number in range(count):
        at = draw.choice(stages[number % len(stages)])  # decoding has the fewest calls, and a way out
        trial.run(injected.armed(at, WORDINGS[number % len(WORDINGS)]))
        assert injected.hits == 1
        assert trial.apart <= trial.noise
    assert sum(trial.came.values()) == count
    assert min(trial.came["refused in a sentence"], trial.came["made"]) > 0
    evidence("errors of missing memory injected", count, f"{trial.told()}; at any of {stages[-1].stop - 1} calls")


@contextmanager
def all_but(left_bytes: int) -> Iterator[None]:
    """Takes what is free of the GPU's memory, but so much and what is less than a block."""
    taken, size = [], 1 << 60
    while size >= BLOCK_BYTES:
        size = min(size, torch.cuda.mem_get_info()[0] - left_bytes)
        try:
            taken += [torch.empty(size, dtype=torch.uint8, device="cuda")] if size >= BLOCK_BYTES else []
        except torch.OutOfMemoryError:
            size //= 2
    try:
        yield
    finally:
        taken.clear()
        settled()


@contextmanager
def short(clips: Clips, left_bytes: int, *, loaded: bool) -> Iterator[None]:
    """So much memory for a clip whose weights are on the GPU already, or are not."""
    if not loaded:
        clips.engines.unload()
    settled()
    with all_but(left_bytes):
        yield


def taken_bytes(clips: Clips, *, loaded: bool) -> int:
    """The most that a clip makes PyTorch take of the GPU beside what it holds before."""
    with short(clips, 1 << 60, loaded=loaded):
        before = torch.cuda.memory_reserved()
        torch.cuda.reset_peak_memory_stats()
        clips.make()
        return torch.cuda.max_memory_reserved() - before


@pytest.mark.gpu
@pytest.mark.skipif(not GPU, reason="there is no CUDA GPU")
@counted(4, 50)
def test_memory_may_run_out_where_it_is_short(clips: Clips, count: int, evidence: Evidence) -> None:
    """Where a library finds no memory for its fastest algorithm it takes another one, and stays with that."""
    draw, trial = random.Random(count), Trial("real", clips)
    most = {loaded: taken_bytes(clips, loaded=loaded) for loaded in (True, False)}
    for number in range(count):
        loaded = number % 4 > 0
        left_bytes = draw.randrange(most[loaded]) if number > 1 else 0
        trial.run(short(clips, left_bytes, loaded=loaded))
        assert trial.least_db >= HALF_PSNR
    assert sum(trial.came.values()) == count
    assert trial.came["refused in a sentence"] >= 2
    told = f"{trial.told()}; of {most[False] >> 20} MiB that a clip takes"
    evidence("clips with too little memory of the GPU", count, told)

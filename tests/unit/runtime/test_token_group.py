"""A clip whose tokens are shared by processes: the same clip, and what failures of one of them leave."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from i2v_tensorrt.pipeline.conditioning import Conditioning
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.devices.rank_processes import Patience
from i2v_tensorrt.runtime.devices.token_group import TokenGroup, unserved
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ...helpers.stages import encoded, engines_of, sampled

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # diffusers gives tensors to numpy
    pytest.mark.skipif(os.name != "posix", reason="tokens are shared on Linux"),
]
REQUEST = ClipRequest(Image.new("RGB", (70, 50), "teal"), "a boat", "blurry", 64, 96, 9, 8)
ALONE = Denoising(seed=5, guidance_scale=1.0, sampler=SamplerSettings(2, "euler"))
GONE_S = 20
FAILING = Path(__file__).resolve().parents[2] / "helpers" / "failing_rank.py"


def group_over(engines: EngineSet, count: int, **more: object) -> EngineSet:
    """The engines, with a group of so many processes on the CPU."""
    return engines.beside(None, TokenGroup(engines, [engines.device] * count, **more))  # type: ignore[arg-type]


def processes(engines: EngineSet) -> list[int]:
    assert isinstance(engines.group, TokenGroup)
    return engines.group.processes.pids


def are_gone(pids: list[int]) -> bool:
    """Whether no process of them is left, within a patience."""
    deadline = time.monotonic() + GONE_S
    while any(Path(f"/proc/{pid}").exists() for pid in pids):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def is_same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-5 * other.abs().max())


class Clip:
    """A tiny Wan's clip without guidance, and what one process gives."""

    def __init__(self, folder: Path, store: Path) -> None:
        self.engines = engines_of(folder, store)
        self.conditioning: Conditioning = encoded(self.engines, REQUEST)
        self.expected = self.made(self.engines)

    def made(self, engines: EngineSet) -> torch.Tensor:
        return sampled(engines, self.conditioning, ALONE)


@pytest.fixture(scope="module")
def clip(tiny_wan: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Clip:
    return Clip(tiny_wan("wan21"), tmp_path_factory.mktemp("store"))


@pytest.fixture
def pair(clip: Clip) -> Iterator[EngineSet]:
    engines = group_over(clip.engines, 2)
    yield engines
    engines.unload()


def test_two_processes_make_the_clip_of_one(clip: Clip, pair: EngineSet) -> None:
    assert is_same(clip.made(pair), clip.expected)
    assert pair.take_notes() == []
    assert pair.describe("core") == "eager, fp32 on cpu and 1 more"
    pids = processes(pair)
    assert len(pids) == 2
    assert is_same(clip.made(pair), clip.expected)
    assert processes(pair) == pids, "they stay from clip to clip"
    pair.unload()
    assert are_gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wan21", "a14b", "ti2v"])
def test_four_processes_make_the_clip_of_one(tiny_wan: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    clip = Clip(tiny_wan(kind), tmp_path)
    engines = group_over(clip.engines, 4)
    assert is_same(clip.made(engines), clip.expected)
    assert engines.take_notes() == []
    pids = processes(engines)
    assert len(pids) == 4
    engines.unload()
    assert are_gone(pids)


@pytest.mark.slow
def test_a_process_that_is_killed_in_the_middle_of_a_call(clip: Clip, pair: EngineSet) -> None:
    clip.made(pair)
    pids = processes(pair)
    os.kill(pids[1], signal.SIGSTOP)  # so that the call does not end before the kill
    killer = threading.Timer(0.5, os.kill, (pids[1], signal.SIGKILL))
    killer.start()
    found = clip.made(pair)
    killer.join()
    assert is_same(found, clip.expected), "the clip goes on with one device"
    (note,) = pair.take_notes()
    assert note.startswith("The process of cpu (number 1) was ended by signal 9; its last words: ")
    assert note.endswith("The clip goes on with one device.")
    assert are_gone(pids)
    assert processes(pair) == []
    assert is_same(clip.made(pair), clip.expected)
    assert pair.take_notes() == []
    assert len(processes(pair)) == 2, "the next clip is shared again"


@pytest.mark.slow
def test_a_process_that_hangs(clip: Clip) -> None:
    engines = group_over(clip.engines, 2, patience=Patience(call_s=1.0))
    clip.made(engines)
    pids = processes(engines)
    os.kill(pids[0], signal.SIGSTOP)
    assert is_same(clip.made(engines), clip.expected)
    (note,) = engines.take_notes()
    assert note == (
        "The process of cpu (number 0) gave no answer within 1 seconds and was ended. The clip goes on with one device."
    )
    assert are_gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [True, False])
def test_an_interruption(clip: Clip, stopped: bool) -> None:
    class StopError(Exception):
        """What a host raises to interrupt."""

    asked = threading.Event()

    def poll() -> None:
        if asked.is_set():
            raise StopError

    engines = group_over(clip.engines, 2, poll=poll)
    clip.made(engines)
    pids = processes(engines)
    if stopped:
        os.kill(pids[1], signal.SIGSTOP)
    threading.Timer(0.3 if stopped else 0.0, asked.set).start()
    if not stopped:
        asked.wait(5)
    with pytest.raises(StopError):
        clip.made(engines)
    assert are_gone(pids)
    asked.clear()
    assert is_same(clip.made(engines), clip.expected)
    engines.unload()


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process(clip: Clip) -> None:
    engines = group_over(clip.engines, 2, worker=FAILING)
    assert is_same(clip.made(engines), clip.expected)
    pids = processes(engines)
    assert is_same(clip.made(engines), clip.expected)
    (note,) = engines.take_notes()
    assert note == "CUDA out of memory: The process of cpu (number 1) has no room. The clip goes on with one device."
    assert are_gone(pids)
    assert is_same(clip.made(engines), clip.expected)
    assert len(processes(engines)) == 2
    engines.unload()


@pytest.mark.slow
def test_processes_go_with_their_last_user(clip: Clip) -> None:
    engines = group_over(clip.engines, 2)
    clip.made(engines)
    pids = processes(engines)
    del engines
    gc.collect()
    assert are_gone(pids)


def test_a_guided_clip_is_not_shared_by_tokens(clip: Clip, pair: EngineSet) -> None:
    guided = Denoising(seed=5, guidance_scale=4.0, sampler=SamplerSettings(2, "euler"))
    found = sampled(pair, clip.conditioning, guided)
    assert torch.equal(found, sampled(clip.engines, clip.conditioning, guided))
    assert processes(pair) == []


def test_who_cannot_share(clip: Clip, tiny_folder: Path, tmp_path: Path) -> None:
    other = engines_of(tiny_folder, tmp_path)
    assert unserved(clip.engines, 2) is None
    assert unserved(clip.engines, 1) == "Expected several devices, found 1."
    reason = unserved(other, 2)
    assert reason is not None
    assert reason.startswith("Wan's clips are shared by their tokens, found I2VGen-XL")

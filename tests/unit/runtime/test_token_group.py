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

from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings
from i2v_tensorrt.runtime.clip_plan import Denoising
from i2v_tensorrt.runtime.devices.rank_processes import Patience
from i2v_tensorrt.runtime.devices.token_group import unserved
from i2v_tensorrt.runtime.engines.engine_set import EngineSet

from ...helpers.shared_clip import ALONE, FAILING, SharedClip, are_gone, group_over, is_same, processes
from ...helpers.stages import engines_of, sampled

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # diffusers gives tensors to numpy
    pytest.mark.skipif(os.name != "posix", reason="tokens are shared on Linux"),
]


@pytest.fixture(scope="module")
def clip(tiny_wan: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> SharedClip:
    return SharedClip(tiny_wan("wan21"), tmp_path_factory.mktemp("store"))


@pytest.fixture
def pair(clip: SharedClip) -> Iterator[EngineSet]:
    engines = group_over(clip.engines, 2)
    yield engines
    engines.unload()


def test_two_processes_make_the_clip_of_one_and_go_with_their_last_user(clip: SharedClip) -> None:
    engines = group_over(clip.engines, 2)
    assert is_same(clip.made(engines), clip.expected)
    assert engines.take_notes() == []
    assert engines.describe("core") == "eager, fp32 on cpu and 1 more"
    pids = processes(engines)
    assert len(pids) == 2
    assert is_same(clip.made(engines), clip.expected)
    assert processes(engines) == pids, "they stay from clip to clip"
    del engines
    gc.collect()
    assert are_gone(pids)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind", ["ti2v", *(pytest.param(kind, marks=pytest.mark.torture) for kind in ("wan21", "a14b"))]
)
def test_four_processes_make_the_clip_of_one(tiny_wan: Callable[[str], Path], tmp_path: Path, kind: str) -> None:
    clip = SharedClip(tiny_wan(kind), tmp_path)
    engines = group_over(clip.engines, 4)
    assert is_same(clip.made(engines), clip.expected)
    assert engines.take_notes() == []
    pids = processes(engines)
    assert len(pids) == 4
    engines.unload()
    assert are_gone(pids)


@pytest.mark.slow
def test_a_process_that_is_killed_in_the_middle_of_a_call(clip: SharedClip, pair: EngineSet) -> None:
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
def test_a_process_that_is_killed_between_two_steps(clip: SharedClip, pair: EngineSet) -> None:
    pids: list[int] = []

    def kill(done: int, total: int, latents: torch.Tensor) -> None:
        if done == 1:
            pids.extend(processes(pair))
            os.kill(pids[0], signal.SIGKILL)
            time.sleep(1)

    assert is_same(sampled(pair, clip.conditioning, ALONE, kill), clip.expected)
    (note,) = pair.take_notes()
    assert note.startswith("The process of cpu (number 0) was ended by signal 9; its last words: ")
    assert note.endswith(". The clip goes on with one device.")
    assert are_gone(pids)


@pytest.mark.slow
def test_a_process_that_hangs(clip: SharedClip) -> None:
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
def test_an_interruption_within_a_call(clip: SharedClip) -> None:
    class StopError(Exception):
        """What a host raises to interrupt."""

    asked = threading.Event()

    def poll() -> None:
        if asked.is_set():
            raise StopError

    engines = group_over(clip.engines, 2, poll=poll)
    clip.made(engines)
    pids = processes(engines)
    os.kill(pids[1], signal.SIGSTOP)  # so that the call does not end before the interruption
    threading.Timer(0.3, asked.set).start()
    with pytest.raises(StopError):
        clip.made(engines)
    assert are_gone(pids)
    asked.clear()
    assert is_same(clip.made(engines), clip.expected)
    engines.unload()


@pytest.mark.slow
def test_memory_that_runs_out_in_one_process(clip: SharedClip) -> None:
    engines = group_over(clip.engines, 2, worker=FAILING)
    assert is_same(clip.made(engines), clip.expected)
    pids = processes(engines)
    assert is_same(clip.made(engines), clip.expected)
    (note,) = engines.take_notes()
    assert note == "CUDA out of memory: The process of cpu (number 1) has no room. The clip goes on with one device."
    assert are_gone(pids)


def test_a_guided_clip_is_not_shared_by_tokens(clip: SharedClip, pair: EngineSet) -> None:
    guided = Denoising(seed=5, guidance_scale=4.0, sampler=SamplerSettings(2, "euler"))
    found = sampled(pair, clip.conditioning, guided)
    assert torch.equal(found, sampled(clip.engines, clip.conditioning, guided))
    assert processes(pair) == []


def test_who_cannot_share(clip: SharedClip, tiny_folder: Path, tmp_path: Path) -> None:
    other = engines_of(tiny_folder, tmp_path)
    assert unserved(clip.engines, 2) is None
    assert unserved(clip.engines, 1) == "Expected several devices, found 1."
    reason = unserved(other, 2)
    assert reason is not None
    assert reason.startswith("Wan's clips are shared by their tokens, found I2VGen-XL")

"""Processes that share a clip's tokens, killed, interrupted and starved at any moment: the host lives, nothing is left,
and the next clip is right."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ..helpers.counts import Evidence
from ..helpers.shared_clip import FAILING, SharedClip, are_gone, folders, group_over, is_same, processes

pytestmark = [
    pytest.mark.torture,  # the short forms are in tests/unit/runtime/test_token_group.py
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),  # diffusers gives tensors to numpy
    pytest.mark.skipif(os.name != "posix", reason="tokens are shared on Linux"),
]


class StopError(BaseException):
    """As ComfyUI's interruption, which no `except Exception` holds up."""


@pytest.fixture(scope="module")
def clip(tiny_wan: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> SharedClip:
    return SharedClip(tiny_wan("wan21"), tmp_path_factory.mktemp("store"))


@pytest.mark.parametrize("count", [100])
def test_kills_of_a_process(clip: SharedClip, evidence: Evidence, count: int) -> None:
    engines, chance, before, shared = group_over(clip.engines, 2), random.Random(0), folders(), 0
    clip.made(engines)
    for _ in range(count):
        started = time.monotonic()
        clip.made(engines)
        took_s, pids = time.monotonic() - started, processes(engines)
        killer = threading.Timer(chance.uniform(0, took_s), os.kill, (chance.choice(pids), signal.SIGKILL))
        killer.start()
        assert is_same(clip.made(engines), clip.expected)
        killer.join()
        shared += not [note for note in engines.take_notes() if "one device" in note]
        assert is_same(clip.made(engines), clip.expected)
        engines.unload()
        assert are_gone(pids)
        assert folders() <= before
        assert is_same(clip.made(engines), clip.expected)
        engines.take_notes()
    evidence("kills of a process", count, f"every clip right, {shared} kills came after the clip, nothing left")
    engines.unload()


@pytest.mark.parametrize("count", [50])
def test_interruptions(clip: SharedClip, evidence: Evidence, count: int) -> None:
    chance, before = random.Random(1), folders()
    stop_at = [float("inf")]

    def poll() -> None:
        if time.monotonic() > stop_at[0]:
            raise StopError

    engines, stopped = group_over(clip.engines, 2, poll=poll), 0
    for _ in range(count):
        assert is_same(clip.made(engines), clip.expected)
        started = time.monotonic()
        clip.made(engines)
        pids = processes(engines)
        stop_at[0] = time.monotonic() + chance.uniform(0, time.monotonic() - started)
        try:
            clip.made(engines)
        except StopError:
            stopped += 1
            assert are_gone(pids)
            assert folders() <= before
        stop_at[0] = float("inf")
    assert is_same(clip.made(engines), clip.expected)
    assert engines.take_notes() == []
    evidence("interruptions of processes", count, f"{stopped} within a call, every next clip right, nothing left")
    engines.unload()


@pytest.mark.parametrize("count", [20])
def test_memory_that_runs_out_in_a_process(clip: SharedClip, evidence: Evidence, count: int) -> None:
    engines, before = group_over(clip.engines, 2, worker=FAILING), folders()
    for _ in range(count):
        assert is_same(clip.made(engines), clip.expected)
        pids = processes(engines)
        assert is_same(clip.made(engines), clip.expected)
        (note,) = engines.take_notes()
        assert "has no room" in note
        assert are_gone(pids)
        assert folders() <= before
    evidence("processes without memory", count, "every clip right, nothing left")
    engines.unload()

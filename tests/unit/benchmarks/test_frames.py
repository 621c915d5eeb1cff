"""The benchmark of frames: what it shows to both nodes, and what it takes from the weights' own figures."""

from __future__ import annotations

import os

import torch

from i2v_tensorrt.benchmarks import frames
from i2v_tensorrt.pipeline.filters.interpolation import STATIC


def test_every_part_moves_and_no_two_frames_are_alike() -> None:
    found = list(frames.moving(4, 64, 96))
    assert all(frame.shape == (64, 96, 3) and 0 <= frame.min() and frame.max() <= 1 for frame in found)
    for one, other in zip(found, found[1:], strict=False):
        change = (one - other).abs()
        assert change.max() > 4 * STATIC and change.unfold(0, 16, 16).unfold(1, 16, 16).amax((2, 3, 4)).min() > STATIC


def test_both_nodes_get_the_same_frames_and_weights() -> None:
    options = frames.parser().parse_args(["--frames", "5"])
    core, ours = (frames._prompt(name, 2, options) for name in (frames.CORE, frames.OURS))
    shared = (frames.LOAD, frames.PARTS, frames.BATCH, frames.MODEL)
    assert [core[name] for name in shared] == [ours[name] for name in shared]
    assert core[frames.CORE]["inputs"]["images"] == ours[frames.OURS]["inputs"]["frames"]
    assert core[frames.CORE]["inputs"]["interp_model"] == ours[frames.OURS]["inputs"]["model"]
    assert frames._prompt(frames.CORE, 1, options) != core


def test_decibels_are_those_of_the_weights_and_what_was_not_run_is_null() -> None:
    found = frames._decibels()
    assert set(found) == {"gap1_db", "gap3_db", "gap6_db"} and found["gap1_db"] > found["gap3_db"] > found["gap6_db"]


def test_memory_is_read_where_the_system_says_it() -> None:
    held = torch.zeros(1 << 24)
    assert frames.resident_bytes(os.getpid()) > held.nbytes or not os.path.isdir("/proc/self")
    assert frames.resident_bytes(2**31 - 1) == 0

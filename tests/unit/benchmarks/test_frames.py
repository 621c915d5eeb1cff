"""The benchmark of frames: what it shows to both nodes, what it takes from files, and its rows without a ComfyUI."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks import frames, frames_beside_core
from i2v_tensorrt.benchmarks.frames_beside_core import BATCH, CORE, LOAD, MODEL, OURS, PARTS
from i2v_tensorrt.benchmarks.judged_frames import warping_errors
from i2v_tensorrt.benchmarks.moving_frames import moving
from i2v_tensorrt.engine_builder.graph.onnx_export import scene
from i2v_tensorrt.pipeline.filters.interpolation import STATIC

SMALL = "64x64x4,128x128x4"


def test_every_part_moves_and_no_two_frames_are_alike() -> None:
    found = list(moving(4, 64, 96))
    assert all(frame.shape == (64, 96, 3) and 0 <= frame.min() and frame.max() <= 1 for frame in found)
    for one, other in zip(found, found[1:], strict=False):
        change = (one - other).abs()
        assert change.max() > 4 * STATIC and change.unfold(0, 16, 16).unfold(1, 16, 16).amax((2, 3, 4)).min() > STATIC


def test_both_nodes_get_the_same_frames_and_weights() -> None:
    options = frames.parser().parse_args(["--frames", "5"])
    core, ours = (frames_beside_core._prompt(name, 2, options) for name in (CORE, OURS))
    shared = (LOAD, PARTS, BATCH, MODEL)
    assert [core[name] for name in shared] == [ours[name] for name in shared]
    assert core[CORE]["inputs"]["images"] == ours[OURS]["inputs"]["frames"]
    assert core[CORE]["inputs"]["interp_model"] == ours[OURS]["inputs"]["model"]
    assert frames_beside_core._prompt(CORE, 1, options) != core


def test_decibels_are_those_of_the_weights_and_what_was_not_run_is_null() -> None:
    found = frames._decibels()
    assert set(found) == {"gap1_db", "gap3_db", "gap6_db"} and found["gap1_db"] > found["gap3_db"] > found["gap6_db"]


def test_memory_is_read_where_the_system_says_it() -> None:
    held = torch.zeros(1 << 24)
    assert frames_beside_core.resident_bytes(os.getpid()) > held.nbytes or not os.path.isdir("/proc/self")
    assert frames_beside_core.resident_bytes(2**31 - 1) == 0


def test_an_unknown_row_is_named_before_anything_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert frames.main(["--rows", "warping,films", "--out", str(tmp_path / "figures.json")]) == 2
    assert "found 'films'" in capsys.readouterr().err and not list(tmp_path.iterdir())


def run(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The figures of rows on their smallest clips, eager."""
    out, store = tmp_path / "figures.json", tmp_path / "store"
    fixed = ["--backend", "eager", "--out", str(out), "--store", str(store), "--checkpoints", str(tmp_path)]
    assert frames.main([*arguments, "--steps", "2", "--rounds", "1", *fixed]) == 0
    return json.loads(out.read_text("utf-8"))


@pytest.mark.slow
def test_two_phases_are_timed_and_a_tiny_checkpoint_gives_no_figure(tmp_path: Path) -> None:
    found = run(tmp_path, "--rows", "phases", "--tiny", "--sizes", SMALL)
    assert found["one_phase_s"] > 0 and found["two_phase_s"] > 0
    assert found["two_phase_ratio"] is None and found["interpolation_fps"] is None
    words = json.loads((tmp_path / "frames.json").read_text("utf-8"))
    assert words["phases_on"]["machine"]["system"] and "film_on" not in words
    assert words["phases"] == "64x64 with 4 frames, then 128x128 with 4 frames; 2 steps, strength 0.35"


@pytest.mark.slow
def test_the_bundled_model_is_judged_after_interpolation_and_in_two_phases(tmp_path: Path) -> None:
    found = run(tmp_path, "--rows", "warping,bundled-phases", "--clips", "1", "--bundled-sizes", SMALL)
    assert found["warping_clips"] == found["bundled_phases_clips"] == 1
    assert 0 < found["smooth_warping_error"] < found["clip_warping_error"]
    assert found["bundled_two_phase_right_percent"] in (0, 100)
    ratio = found["bundled_one_phase_s"] / found["bundled_two_phase_s"]
    assert found["bundled_two_phase_ratio"] == pytest.approx(ratio, rel=0.01) and found["two_phase_ratio"] is None


def test_warping_errors_tell_frames_that_lie_between_from_a_blend() -> None:
    exact = torch.stack([scene((3, 128, 128), (index, 0), 7).permute(1, 2, 0) for index in range(9)])
    found = warping_errors(exact[::2], exact)
    assert found["between_warping_error"] < found["clip_warping_error"] * 1.2
    blurred = exact.clone()
    blurred[1::2] = (exact[:-1:2] + exact[2::2]) / 2
    again = warping_errors(exact[::2], blurred)
    assert again["between_warping_error"] == again["blend_warping_error"]
    assert again["smooth_warping_error"] > found["smooth_warping_error"]

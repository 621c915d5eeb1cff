"""`run.py bench frames` on the smallest frames: every row beside the core's nodes gives its figures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from i2v_tensorrt.benchmarks import frames
from i2v_tensorrt.remote.comfyui.server import ComfyHost

SMALL = ("--width", "96", "--height", "64", "--frames", "4", "--side", "32", "--upscale-frames", "2", "--film", "40")


@pytest.mark.slow
def test_every_row_beside_the_core_is_measured_and_what_was_not_run_is_null(host: ComfyHost, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    rows = "interpolation,compact,esrgan,film"
    assert frames.main(["--rows", rows, "--backend", "eager", "--rounds", "1", "--out", str(out), *SMALL]) == 0
    found = json.loads(out.read_text("utf-8"))
    for name in ("interpolation", "upscale", "esrgan_upscale"):
        assert found[f"{name}_fps"] > 0 and found[f"core_{name}_fps"] > 0
        assert found[f"{name}_times"] == pytest.approx(found[f"{name}_fps"] / found[f"core_{name}_fps"], rel=0.01)
    assert found["film_frames"] == 40 and found["film_growth_mib"] < 128
    assert found["two_phase_ratio"] is None
    words = json.loads((tmp_path / "frames.json").read_text("utf-8"))
    assert words["interpolation_lines_1"][0].startswith("4 frames at 24 fps to 48 fps: 3 made")
    assert words["esrgan_upscale_lines_1"][0].startswith("32x32 to 128x128: 2 tiles")
    assert len(words["film_held_mib"]) > 1

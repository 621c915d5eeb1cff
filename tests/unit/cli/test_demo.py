"""`run.py demo`: what it asks for, what it leaves behind, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from i2v_tensorrt.cli import demo_command
from i2v_tensorrt.cli.demo_runs import run_demo
from i2v_tensorrt.common.pack_paths import BUNDLED
from i2v_tensorrt.pipeline.media.reader import read_video
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.demo_model import demo_model


@pytest.mark.parametrize(("arguments", "count"), [(["--prompt", "pan up"], 1), (["--four"], 4)])
def test_each_prompt_is_a_video(tmp_path: Path, arguments: list[str], count: int) -> None:
    options = demo_command.parser().parse_args(["--out", str(tmp_path), *arguments])
    clips = demo_command._job(options, demo_model(tmp_path)).clips
    assert len({prompt for prompt, _ in clips}) == len({video for _, video in clips}) == len(clips) == count
    if count == 1:
        assert clips == (("pan up", tmp_path / "demo.mp4"),)


def test_the_bundled_model_is_taken_by_no_special_path() -> None:
    model = open_model(BUNDLED)
    assert set(model.engine_components) <= set(model.components)


def test_a_picture_that_is_not_there_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--out", str(tmp_path), "--image", str(tmp_path / "none.png")]
    assert demo_command.main(arguments) == 1
    error = capsys.readouterr().err
    assert "none.png" in error
    assert "Traceback" not in error


@pytest.mark.slow
def test_the_whole_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Engines are built, then found; the video and the sheet are what was asked for."""
    monkeypatch.setattr(demo_command, "CACHE", tmp_path / "cache")
    assert demo_command.main(["--out", str(tmp_path), "--tiny"]) == 0
    said = capsys.readouterr().out
    assert "5 engines built in " in said
    assert str(tmp_path / "demo.mp4") in said
    assert read_video(tmp_path / "demo.mp4").shape == (8, 128, 128, 3)
    with Image.open(tmp_path / "demo_contact_sheet.png") as sheet:
        assert sheet.width > 128
    options = demo_command.parser().parse_args(["--out", str(tmp_path), "--tiny"])
    again = run_demo(demo_command._job(options, demo_model(tmp_path / "cache", tiny=True)))
    assert not any("built" in note for note in again.notes)

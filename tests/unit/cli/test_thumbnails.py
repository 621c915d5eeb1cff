"""`run.py thumbnails`: what it draws of the workflows, and of which frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from i2v_tensorrt.cli.thumbnails import canvas, clips
from i2v_tensorrt.cli.thumbnails.bundled import ART, Pictures
from i2v_tensorrt.cli.thumbnails.canvas import SIDE, Canvas
from i2v_tensorrt.cli.thumbnails.cards import drawn
from i2v_tensorrt.cli.thumbnails.clips import RUNNABLE, make_clips, read_clip
from i2v_tensorrt.cli.thumbnails.command import MOST_BYTES, main
from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.common.workflow_names import COMPARE, NAMES, TWO_PROMPTS, UPSCALED

GREEN, BLUE = (0, 200, 0), (0, 0, 200)
WIDE = (COMPARE, TWO_PROMPTS)
"""Workflows whose frames hold two pictures."""


def frames_in(folder: Path, colour: tuple[int, int, int]) -> Path:
    """The frames that the workflows would have made, all in one colour."""
    for name in RUNNABLE:
        (folder / name).mkdir(parents=True)
        for number in range(4):
            Image.new("RGB", (64 if name in WIDE else 32, 32), colour).save(folder / name / f"{number:03}.png")
    return folder


@pytest.fixture
def fonts() -> None:
    """The fonts of the pictures, or others in their place: that letters are drawn is looked at by people."""
    if not all(Path(path).is_file() for path, _ in canvas.FONTS.values()):
        pytest.skip("fonts-inter and fonts-noto-cjk are not installed")


@pytest.mark.usefixtures("fonts")
@pytest.mark.parametrize("name", NAMES)
def test_what_can_run_shows_its_frames_and_no_other_does(name: str, tmp_path: Path) -> None:
    """The small picture before an upscale model is a frame of the bundled model too."""
    lake = Image.new("RGB", (64, 64), BLUE)
    seen = {}
    for colour in (GREEN, (200, 0, 0)):
        folder = frames_in(tmp_path / str(colour[0]), colour)
        pictures = Pictures(lake, {each: read_clip(folder, each) for each in RUNNABLE})
        seen[colour] = np.asarray(drawn(name, pictures))[:ART]
        assert seen[colour].shape == (ART, SIDE, 3)
    differ = (seen[GREEN] != seen[200, 0, 0]).any(-1).mean()
    assert (differ > 0.03) == (name in (*RUNNABLE, UPSCALED))


@pytest.mark.usefixtures("fonts")
def test_the_command_writes_pictures_that_are_small(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = frames_in(tmp_path / "frames", GREEN)
    assert main([NAMES[0], "--frames", str(folder), "--out", str(tmp_path)]) == 0
    (path,) = tmp_path.glob("*.jpg")
    with Image.open(path) as picture:
        assert (path.stem, picture.size) == (NAMES[0], (SIDE, SIDE))
    assert path.stat().st_size <= MOST_BYTES and f"drew {NAMES[0]}" in capsys.readouterr().out


def test_a_name_of_none_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["First", "--out", str(tmp_path)]) == 2
    assert "found First" in capsys.readouterr().err


def test_without_a_comfyui_it_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clips, "find_comfyui", lambda: None)
    with pytest.raises(InputError, match="Expected a ComfyUI"):
        make_clips(tmp_path)


def test_a_font_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(canvas, "FONTS", {"latin": (str(tmp_path / "none.otf"), 0)})
    canvas._font.cache_clear()
    with pytest.raises(InputError, match="install fonts-inter"):
        Canvas("#000000").words((0, 0), "words", 10)
    canvas._font.cache_clear()

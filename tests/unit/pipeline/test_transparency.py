"""Transparency: kept in the files that hold it, laid over black in the others."""

from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

from i2v_tensorrt.pipeline.media.formats import FORMATS, VideoInfo, VideoOptions
from i2v_tensorrt.pipeline.media.reader import stream_frames
from i2v_tensorrt.pipeline.media.video import write_video


def write(folder: Path, key: str, frames: torch.Tensor) -> VideoInfo:
    return write_video(frames, folder / f"clip{FORMATS[key].suffix}", VideoOptions(key, 8))


def fading(num_frames: int = 2, height: int = 31, width: int = 48) -> torch.Tensor:
    """Red that is opaque on the left, half so in the middle and transparent on the right; then green."""
    opacity = torch.tensor([1.0, 0.5, 0.0]).repeat_interleave(width // 3).expand(height, width)
    colours = torch.tensor([[1.0, 0.2, 0.0], [0.0, 1.0, 0.2]])
    return torch.stack([torch.cat([c.expand(height, width, 3), opacity[..., None]], -1) for c in colours][:num_frames])


@pytest.mark.parametrize("key", ["mp4-h264", "mp4-h265", "webm-av1"])
def test_transparency_is_laid_over_black_where_no_room_is_for_it(tmp_path: Path, key: str) -> None:
    info = write(tmp_path, key, fading(height=32))
    first = next(iter(stream_frames(info.path))) * 255
    expected = torch.tensor([[255.0, 51, 0], [128, 26, 0], [0, 0, 0]])
    assert (first[16, [8, 24, 40]] - expected).abs().max() < 20
    assert [note for note in info.notes if "over black" in note]


def rgba_of(path: Path) -> np.ndarray:
    """The frames of a file with transparency, [frames, height, width, 4]."""
    if path.suffix in (".webp", ".gif"):
        with Image.open(path) as image:
            return np.stack([np.asarray(frame.convert("RGBA")) for frame in ImageSequence.Iterator(image)])
    with av.open(path) as container:
        stream = container.streams.video[0]
        if path.suffix == ".mkv":
            return np.stack([frame.to_ndarray(format="rgba") for frame in container.decode(stream)])
        assert stream.metadata["ALPHA_MODE"] == "1"
        decoder = av.CodecContext.create("libvpx-vp9", "r")  # FFmpeg's own decoder leaves transparency out
        frames = [frame for packet in container.demux(stream) for frame in decoder.decode(packet)]
        return np.stack([frame.reformat(format="rgba").to_ndarray() for frame in frames])


@pytest.mark.parametrize("key", ["webm-vp9", "webp", "gif", "mkv-ffv1"])
@pytest.mark.parametrize("width", [48, 51])
def test_transparency_is_kept_where_the_format_holds_it(tmp_path: Path, key: str, width: int) -> None:
    info = write(tmp_path, key, fading(width=width - width % 3))
    found = rgba_of(info.path)[:, 15, [8, 24, 40]].astype(int)
    opacity = [255, 255 if key == "gif" else 128, 0]
    assert np.abs(found[..., 3] - opacity).max() < 8
    assert np.abs(found[:, :2, :3] - np.array([[[255, 51, 0]], [[0, 255, 51]]])).max() < 24
    assert [note for note in info.notes if "black" in note] == []
    assert bool([note for note in info.notes if "half opaque" in note]) == (key == "gif")


def test_a_wholly_transparent_clip_is_one(tmp_path: Path) -> None:
    clear = torch.rand(3, 16, 16, 4) * torch.tensor([1.0, 1.0, 1.0, 0.0])
    for key in ("webm-vp9", "webp", "gif", "mkv-ffv1"):
        assert rgba_of(write(tmp_path, key, clear).path)[..., 3].max() == 0

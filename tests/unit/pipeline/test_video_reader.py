"""Frames come back as they were written, and what is no video is refused in one sentence."""

from collections.abc import Callable
from pathlib import Path

import av
import pytest
import torch

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.pipeline.media.reader import read_video

from ...helpers.refusals import refused


def write_lossless(path: Path, frames: torch.Tensor) -> None:
    """An ffv1 file of uint8 frames [frames, height, width, 3]."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", 8)
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], "bgr0"
        container.start_encoding()
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")))
        container.mux(stream.encode())


def write_silence(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", 8000)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(torch.zeros(1, 800, dtype=torch.int16).numpy(), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))


def random(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (5, 18, 33, 3)])
def test_frames_come_back(tmp_path: Path, shape: tuple[int, ...]) -> None:
    frames = random(shape)
    write_lossless(tmp_path / "clip.mkv", frames)
    found = read_video(tmp_path / "clip.mkv")
    assert found.dtype == torch.float32
    assert torch.equal(found, frames.float() / 255)


@pytest.mark.parametrize(
    "make",
    [
        lambda path: None,
        lambda path: path.mkdir(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("no video at all\n" * 100),
        lambda path: write_lossless(path, torch.zeros(0, 16, 16, 3, dtype=torch.uint8)),
        write_silence,
    ],
    ids=["missing", "folder", "empty", "text", "no_frames", "sound"],
)
def test_what_is_no_video_is_refused(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "clip.mkv"
    make(path)
    with refused(StorageError) as error:
        read_video(path)
    assert str(error.value).count(str(path)) == 1


def test_a_cut_file_gives_its_first_frames_unharmed(tmp_path: Path) -> None:
    frames = random((6, 64, 64, 3))
    write_lossless(tmp_path / "clip.mkv", frames)
    whole = (tmp_path / "clip.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    found = read_video(tmp_path / "cut.mkv")
    assert 0 < len(found) < len(frames)
    assert torch.equal(found, frames[: len(found)].float() / 255)

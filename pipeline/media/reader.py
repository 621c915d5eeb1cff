"""Frames back out of a video file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...common.errors import StorageError
from .container import BT709
from .formats import Audio

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame
    from av.container import InputContainer


def read_video(path: Path) -> torch.Tensor:
    """Every frame of a file that PyAV reads, float32 [frames, height, width, 3] in 0..1.

    Raises StorageError when it is not such a file.
    """
    import av

    try:
        with av.open(str(path)) as container:
            streams = container.streams.video[:1]
            frames = [to_rgb(frame) for stream in streams for frame in container.decode(stream)]
    except av.FFmpegError as error:
        raise StorageError(
            f"Expected a video file at {path}, found none that can be read: {error.strerror}."
        ) from error
    if not frames:
        raise StorageError(f"Expected a video file at {path}, found no picture in it.")
    return torch.stack([torch.from_numpy(frame) for frame in frames]).float() / 255


Source = str | Path | BytesIO
"""A file, or its bytes."""


@dataclass(frozen=True)
class StreamInfo:
    """A video's size in pixels, its frames per second, and its number of frames as far as the file knows."""

    height: int
    width: int
    rate: Fraction
    num_frames: int


def stream_info(source: Source) -> StreamInfo:
    """Facts on a file's video, without decoding it; raises StorageError for a file without any."""
    with _opened(source) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate or stream.guessed_rate or 1)
        seconds = container.duration / 1_000_000 if container.duration else 0.0
        num_frames = stream.frames or max(round(seconds * rate), 1)
        return StreamInfo(stream.height, stream.width, rate, num_frames)


def stream_frames(source: Source) -> Iterator[torch.Tensor]:
    """The frames of a file one by one, float32 [height, width, 3] in 0..1; raises StorageError."""
    with _opened(source) as container:
        for frame in container.decode(container.streams.video[0]):
            yield torch.from_numpy(to_rgb(frame)).float() / 255


def read_sound(source: Source) -> Audio | None:
    """The first sound of a file; None without any. Raises StorageError."""
    import av

    with _opened(source) as container:
        if not container.streams.audio:
            return None
        stream = container.streams.audio[0]
        planar = av.AudioResampler(format="fltp")
        parts = [made.to_ndarray() for frame in container.decode(stream) for made in planar.resample(frame)]
        if not parts:
            return None
        return Audio(torch.cat([torch.from_numpy(part) for part in parts], dim=1), stream.rate)


@contextmanager
def _opened(source: Source) -> Iterator[InputContainer]:
    import av

    if isinstance(source, BytesIO):
        source.seek(0)
    try:
        with av.open(source if isinstance(source, BytesIO) else str(source)) as container:
            if not container.streams.video:
                raise StorageError("Expected a video file with pictures, found none in it.")
            yield container
    except av.FFmpegError as error:
        raise StorageError(
            f"Expected a video file that can be read, found one that cannot: {error.strerror}."
        ) from error


def to_rgb(frame: VideoFrame) -> np.ndarray:
    """A decoded frame, uint8 [height, width, 3], by the matrix that it is tagged with.

    PyAV below 17 looks at the frame's own only where it is told of one that differs from the result's.
    """
    matrix: dict[str, Any] = {"src_colorspace": "ITU709", "dst_colorspace": "DEFAULT"}
    return frame.to_ndarray(format="rgb24", **(matrix if frame.colorspace == BT709 else {}))

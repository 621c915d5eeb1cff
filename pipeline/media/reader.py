"""Frames back out of a video file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ...common.errors import StorageError
from .container import BT709

if TYPE_CHECKING:
    import numpy as np
    from av import VideoFrame


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


def to_rgb(frame: VideoFrame) -> np.ndarray:
    """A decoded frame, uint8 [height, width, 3], by the matrix that it is tagged with.

    PyAV below 17 looks at the frame's own only where it is told of one that differs from the result's.
    """
    matrix: dict[str, Any] = {"src_colorspace": "ITU709", "dst_colorspace": "DEFAULT"}
    return frame.to_ndarray(format="rgb24", **(matrix if frame.colorspace == BT709 else {}))

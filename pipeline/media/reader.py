"""Frames back out of a video file."""

from __future__ import annotations

from pathlib import Path

import torch

from ...common.errors import StorageError


def read_video(path: Path) -> torch.Tensor:
    """Every frame of a file that PyAV reads, float32 [frames, height, width, 3] in 0..1.

    Raises StorageError when it is not such a file.
    """
    import av

    try:
        with av.open(str(path)) as container:
            streams = container.streams.video[:1]
            frames = [frame.to_ndarray(format="rgb24") for stream in streams for frame in container.decode(stream)]
    except av.FFmpegError as error:
        raise StorageError(
            f"Expected a video file at {path}, found none that can be read: {error.strerror}."
        ) from error
    if not frames:
        raise StorageError(f"Expected a video file at {path}, found no picture in it.")
    return torch.stack([torch.from_numpy(frame) for frame in frames]).float() / 255

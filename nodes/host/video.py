"""Frames of an IMAGE or a VIDEO one by one, and a VIDEO made of frames as they come."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import Input, InputImpl, Types

from ...common.errors import InputError
from ...pipeline.filters.timing import exact
from ...pipeline.media.formats import Audio, OnFrame, VideoOptions
from ...pipeline.media.frames import StreamedClip, over_black, play_order
from ...pipeline.media.large_clip import empty_clip
from ...pipeline.media.reader import read_sound, stream_frames, stream_info
from ...pipeline.media.sound import usable_sound
from ...pipeline.media.video import write_stream
from . import folders

FORMAT, CRF = "mp4-h264", 10.0
"""What a VIDEO lies in between two nodes: small, and nearly lossless."""


@dataclass(frozen=True)
class Footage:
    """Frames [height, width, 3], 0 to 1, one by one, and what is known of them; `num_frames` as far as a file knows."""

    frames: Iterable[torch.Tensor]
    height: int
    width: int
    num_frames: int
    rate: Fraction
    audio: Audio | None = None
    is_video: bool = False


def footage(source: Any, fps: float) -> Footage:
    """The frames of an IMAGE at `fps`, or of a VIDEO at its own rate. Raises InputError, or StorageError for a file."""
    if isinstance(source, torch.Tensor):
        if source.ndim != 4 or not source.is_floating_point() or 0 in source.shape:
            raise InputError(f"Expected frames [frames, height, width, 3] from 0 to 1, found {list(source.shape)}.")
        return Footage(
            source, source.shape[1], source.shape[2], len(source), exact(Fraction(fps).limit_denominator(1000))
        )
    path = _file_of(source)
    if path is not None:
        info = stream_info(path)
        return Footage(
            stream_frames(path), info.height, info.width, info.num_frames, info.rate, read_sound(path), is_video=True
        )
    found = source.get_components()
    _, height, width, _ = found.images.shape
    rate, count = Fraction(found.frame_rate), len(found.images)
    sound, _ = usable_sound(found.audio)
    return Footage(found.images, height, width, count, rate, sound, is_video=True)


class PlayedVideo(InputImpl.VideoFromComponents):
    """A VIDEO of frames as they play, made when it is asked for: mostly nobody does, and it would be a second copy.

    `frames` is [frames, height, width, 1 | 3 | 4] in 0..1. ComfyUI's nodes take RGB alone: grey is repeated, and
    transparency laid over black.
    """

    def __init__(self, frames: torch.Tensor, rate: Fraction, sound: Audio | None, *, pingpong: bool) -> None:
        audio: Any = None
        if sound is not None:
            audio = {"waveform": sound.waveform[None], "sample_rate": sound.sample_rate}
        self._given = Types.VideoComponents(images=frames, frame_rate=rate, audio=audio)
        self._pingpong = pingpong
        super().__init__(self._given)

    def get_components(self) -> Types.VideoComponents:
        images = self._given.images
        if self._pingpong:
            images = images[list(play_order(len(images), pingpong=True))]
        if images.shape[-1] != 3:
            images = over_black(images) if images.shape[-1] == 4 else images.expand(-1, -1, -1, 3)
        return Types.VideoComponents(images=images, frame_rate=self._given.frame_rate, audio=self._given.audio)

    def save_to(self, *place: Any, **options: Any) -> None:
        InputImpl.VideoFromComponents(self.get_components()).save_to(*place, **options)


def collected(made: Footage, on_frame: OnFrame) -> tuple[torch.Tensor | None, Input.Video]:
    """New footage as IMAGE and VIDEO; as VIDEO alone where it is one.

    The latter is written to ComfyUI's temporary folder as the frames come, with the footage's sound.
    """
    if made.is_video:
        return None, _streamed(made, on_frame)
    images = empty_clip(made.num_frames, made.height, made.width)
    for number, frame in enumerate(made.frames):
        images[number] = frame
        on_frame(number + 1, made.num_frames)
    components = Types.VideoComponents(images=images, frame_rate=made.rate, audio=None)
    return images, InputImpl.VideoFromComponents(components)


def _streamed(made: Footage, on_frame: OnFrame) -> Input.Video:
    options = VideoOptions(FORMAT, float(made.rate), CRF)
    with folders.save_place("i2v_frames", options.spec.suffix, 0, 0, temporary=True) as place:
        clip = StreamedClip(made.frames, made.height, made.width, made.num_frames)
        write_stream(clip, place.path, options, audio=made.audio, on_frame=on_frame)
    return InputImpl.VideoFromFile(str(folders.temporary_file(place)))


def _file_of(source: Any) -> Path | BytesIO | None:
    """The file of a VIDEO that is one, whole; None for one that is trimmed or lies in memory."""
    if not isinstance(source, InputImpl.VideoFromFile):
        return None
    with suppress(AttributeError):  # older hosts cannot trim
        if source.get_active_trim_window() != (0.0, 0.0):
            return None
    found = source.get_stream_source()
    return found if isinstance(found, BytesIO) else Path(found)

"""Frames become a video file: mp4, webm and mkv through PyAV, webp and gif through Pillow."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ...common.atomic_file import atomic_file
from ...common.errors import InputError
from .animation import write_animation
from .container import write_container
from .formats import Audio, OnFrame, VideoInfo, VideoOptions, as_json, file_size, require_encoder
from .frames import Clip, StreamedClip, make_clip
from .sound import check_audio

log = logging.getLogger(__name__)


def write_video(
    frames: Tensor,
    path: Path,
    options: VideoOptions,
    *,
    metadata: Mapping[str, object] | None = None,
    audio: Audio | None = None,
    on_frame: OnFrame | None = None,
) -> VideoInfo:
    """Writes `frames` to `path`, whole or not at all, and returns a report on the file.

    `frames` is floating point [frames, height, width, 1 | 3 | 4] from 0 to 1 on any device. `metadata`, such
    as {"prompt": ..., "workflow": ...}, is stored as ComfyUI's core does: JSON text by key in a container,
    EXIF "key:json" in a webp; a gif gets one JSON object as its comment. `audio` is cut to the length of the
    video. `on_frame(done, total)` is called after each frame and may raise to stop the work.

    Raises:
        InputError: frames, audio, metadata or file name do not fit the format.
        BackendUnavailableError: the installed PyAV or Pillow lacks the encoder.
        StorageError: the file could not be written.
    """
    clip = make_clip(frames, pingpong=options.pingpong, keep_alpha=options.spec.alpha_pix_fmt is not None)
    texts = as_json(metadata)
    _check_target(path, clip, options)
    require_encoder(options.format, options.spec.encoder)
    if audio is not None:
        check_audio(audio)
        if options.spec.audio_encoder is not None:
            require_encoder(options.format, options.spec.audio_encoder)
    report = on_frame or _ignore
    with atomic_file(path) as temporary:
        if options.spec.is_image:
            write_animation(clip, temporary, options, texts, report)
        else:
            write_container(clip, temporary, options, texts, audio, report)
        size_bytes = temporary.stat().st_size
    height, width = file_size(clip.height, clip.width, options.spec)
    notes = tuple(_notes(clip, options, audio, texts))
    for note in notes:
        log.info("%s: %s", path.name, note)
    return VideoInfo(path, options.format, width, height, len(clip), float(options.rate), size_bytes, notes)


def write_stream(
    clip: StreamedClip,
    path: Path,
    options: VideoOptions,
    *,
    audio: Audio | None = None,
    on_frame: OnFrame | None = None,
) -> None:
    """Writes frames to a container at `path` as they come, whole or not at all; errors are those of `write_video`.

    Raises InputError also for an animated picture, which holds all its frames.
    """
    if options.spec.is_image:
        raise InputError(f"Frames are streamed into a video file, and {options.format} is a picture.")
    require_encoder(options.format, options.spec.encoder)
    if audio is not None:
        check_audio(audio)
        require_encoder(options.format, options.spec.audio_encoder or "")
    with atomic_file(path) as temporary:
        write_container(clip, temporary, options, {}, audio, on_frame or _ignore)


def _check_target(path: Path, clip: Clip, options: VideoOptions) -> None:
    key, spec = options.format, options.spec
    if path.suffix.lower() != spec.suffix:
        raise InputError(f"The name of a {key} file must end in {spec.suffix}, but it is {path.name!r}.")
    if clip.width < spec.min_width:
        raise InputError(
            f"{key} needs frames at least {spec.min_width} pixels wide, but they are {clip.width}x{clip.height}."
        )
    if spec.max_side is not None and max(clip.height, clip.width) > spec.max_side:
        raise InputError(
            f"{key} holds at most {spec.max_side} pixels a side, but frames are {clip.width}x{clip.height}."
        )


def _notes(clip: Clip, options: VideoOptions, audio: Audio | None, texts: Mapping[str, str]) -> list[str]:
    key, spec, notes = options.format, options.spec, []
    height, width = file_size(clip.height, clip.width, spec)
    if (height, width) != (clip.height, clip.width):
        notes.append(
            f"Padded from {clip.width}x{clip.height} to {width}x{height} by repeating the edge, "
            f"because {key} needs even sizes."
        )
    if clip.has_alpha and not clip.keeps_alpha:
        notes.append(f"Transparency was laid over black, because {key} is written without it.")
    if clip.keeps_alpha and key == "gif":
        notes.append("What is less than half opaque is transparent, and the rest opaque: a gif knows nothing between.")
    if options.fps > spec.max_fps:
        notes.append(f"Plays at {spec.max_fps:g} fps instead of {options.fps:g}, the most that {key} shows.")
    if audio is not None and spec.audio_encoder is None:
        notes.append(f"The audio was left out, because {key} has no sound.")
    if options.crf is not None and spec.crf_range is None:
        notes.append(f"crf {options.crf:g} was not used, because {key} has no such scale.")
    if "workflow" in texts and not spec.has_workflow:
        notes.append(f"The workflow is inside, but ComfyUI's page opens none from {key}: mp4, webm and webp it does.")
    if spec.encoder == "libx264" and (options.used_crf or 0) < 1:
        notes.append("A crf below 1 makes h264 lossless, in a profile that browsers do not play.")
    return notes


def _ignore(done: int, total: int) -> None:
    """Ignores the progress, for callers without a callback."""

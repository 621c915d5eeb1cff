"""mp4, webm and mkv through PyAV."""

from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
from torch import Tensor

from ...common.errors import InputError
from .formats import Audio, OnFrame, VideoFormat, VideoOptions, file_size
from .frames import Clip, StreamedClip, pad_to_even, to_rgb8, to_yuv420

if TYPE_CHECKING:
    from av import AudioStream, Packet, VideoCodecContext, VideoFrame, VideoStream
    from av.container import OutputContainer

AUDIO_LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}
AUDIO_BIT_RATE_PER_CHANNEL = 96_000
IDENTITY, BT709, SRGB = 0, 1, 13
"""Matrices, primaries and curves by their numbers in ITU-T H.273."""
AHEAD = 2
"""Frames that are converted before the encoder takes them."""
LIMITED_RANGE, FULL_RANGE = 1, 2
"""Levels of 16..235 and 0..255, by FFmpeg's numbers."""


def write_container(
    clip: Clip | StreamedClip,
    path: Path,
    options: VideoOptions,
    texts: Mapping[str, str],
    audio: Audio | None,
    on_frame: OnFrame,
) -> None:
    """Writes `clip` and `audio` to `path` as `options` say, with `texts` as the container's metadata.

    Raises:
        InputError: the encoder refuses the frames.
        OSError: the file could not be written.
    """
    import av
    from av.error import FFmpegError

    spec = options.spec
    try:
        container = av.open(str(path), "w", format=spec.container, options=dict(spec.container_options))
        with _closing(container):
            container.metadata.update(texts)
            video = _add_video(container, clip, options)
            sound = _Sound(container, spec, audio, options.rate) if audio else None
            # A packet is one frame; sound goes in beside it, so that a player can read both from one place.
            for number, packet in enumerate(_packets(clip, video, on_frame), start=1):
                container.mux(packet)
                if sound is not None:
                    sound.write_until(number)
            if sound is not None:
                sound.finish()
    except (OSError, MemoryError):
        raise
    except FFmpegError as error:
        raise InputError(
            f"{options.format} could not encode frames of {clip.width}x{clip.height} at "
            f"{float(options.rate):g} fps: the encoder {spec.encoder} said {error.strerror!r}."
        ) from error


@contextmanager
def _closing(container: "OutputContainer") -> Iterator[None]:
    """Closes the container, which writes its end; after a failure, quietly, so that the failure passes."""
    try:
        yield
    except BaseException:
        with suppress(Exception):
            container.close()
        raise
    container.close()


def _packets(clip: Clip | StreamedClip, video: "VideoStream", on_frame: OnFrame) -> Iterator["Packet"]:
    for position, frame in enumerate(_converted(clip.pictures(), video.codec_context)):
        frame.pts, frame.time_base = position, video.codec_context.time_base
        yield from video.encode(frame)
        on_frame(position + 1, max(position + 1, len(clip)))
    yield from video.encode(None)


def _converted(pictures: Iterator[Tensor], context: "VideoCodecContext") -> Iterator["VideoFrame"]:
    """Each picture as the encoder takes it; while that works on one, a thread converts the next ones."""
    converted: deque[Future[VideoFrame]] = deque()
    with ThreadPoolExecutor(1, "i2v frames") as thread:
        for picture in pictures:
            converted.append(thread.submit(_picture, picture, context))
            if len(converted) > AHEAD:
                yield converted.popleft().result()
        while converted:
            yield converted.popleft().result()


def _add_video(container: "OutputContainer", clip: Clip | StreamedClip, options: VideoOptions) -> "VideoStream":
    spec = options.spec
    encoder_options = dict(spec.encoder_options)
    if options.used_crf is not None:
        encoder_options["crf"] = f"{options.used_crf:g}"
    if spec.encoder == "libx265":
        encoder_options["x265-params"] = _x265_params(len(clip), clip.width)
    stream = cast("VideoStream", container.add_stream(spec.encoder, options.rate, encoder_options))
    stream.height, stream.width = file_size(clip.height, clip.width, spec)
    stream.pix_fmt = (spec.alpha_pix_fmt if clip.keeps_alpha else None) or spec.pix_fmt
    if clip.keeps_alpha:
        stream.metadata["alpha_mode"] = "1"  # or players of webm do not look for it
    stream.bit_rate = 0  # vp9 takes crf as a quality only then
    stream.codec_context.time_base = 1 / options.rate
    if spec.codec_tag is not None:
        stream.codec_context.codec_tag = spec.codec_tag
    _tag_colours(stream.codec_context, is_rgb=spec.is_rgb)
    return stream


def _x265_params(num_frames: int, width: int) -> str:
    """Keeps x265 quiet, and from two faults that were seen in its version 4.2."""
    params = ["log-level=error"]
    if num_frames < 3:
        # It takes the first time stamp from the frame that reordering waits for; where the clip ends before
        # that frame, it takes it from memory that was never set.
        params.append("bframes=0")
    if width < 64:
        # The propagation of quality along motion writes past the end of its buffer for narrow frames.
        params.append("cutree=0")
    return ":".join(params)


def _tag_colours(target: "VideoCodecContext | VideoFrame", *, is_rgb: bool) -> None:
    """BT.709 primaries with sRGB's curve, as the core tags pictures; matrix and range as in use.

    Numbers of ITU-T H.273 and FFmpeg, whose names PyAV has from 17 on. Before 17 its frames have no primaries and no
    curve of their own: there the encoder's are written alone.
    """
    colours = {
        "color_primaries": BT709,
        "color_trc": SRGB,
        "colorspace": IDENTITY if is_rgb else BT709,
        "color_range": FULL_RANGE if is_rgb else LIMITED_RANGE,
    }
    for name, number in colours.items():
        if hasattr(target, name):
            setattr(target, name, number)


def _picture(frame: Tensor, context: "VideoCodecContext") -> "VideoFrame":
    import av

    is_rgb = not (context.pix_fmt or "").startswith("yuv")
    if is_rgb:
        kind = "rgba" if frame.shape[-1] == 4 else "rgb24"
        picture = av.VideoFrame.from_ndarray(to_rgb8(frame), format=kind).reformat(format=context.pix_fmt)
    elif frame.shape[-1] == 4:
        picture = _planes(to_yuv420(pad_to_even(frame)))
    else:
        picture = av.VideoFrame.from_ndarray(to_yuv420(pad_to_even(frame)), format="yuv420p")
    _tag_colours(picture, is_rgb=is_rgb)
    return picture


def _planes(planes: np.ndarray) -> "VideoFrame":
    """uint8 [height * 5 / 2, width] as a picture of yuva420p, which PyAV does not make of an array."""
    import av

    height, width = planes.shape[0] * 2 // 5, planes.shape[1]
    picture = av.VideoFrame(width, height, "yuva420p")
    start = 0
    for plane in picture.planes:
        count = plane.width * plane.height
        rows = np.zeros((plane.height, plane.line_size), np.uint8)
        rows[:, : plane.width] = planes.reshape(-1)[start : start + count].reshape(plane.height, plane.width)
        plane.update(rows.tobytes())
        start += count
    return picture


class _Sound:
    """The sound of a container, fed in step with the frames."""

    def __init__(self, container: "OutputContainer", spec: VideoFormat, audio: Audio, frame_rate: Fraction) -> None:
        channels = audio.waveform.shape[0]
        self.container, self.audio, self.frame_rate, self.done = container, audio, frame_rate, 0
        rate = spec.audio_rate(audio.sample_rate)
        self.stream = cast("AudioStream", container.add_stream(spec.audio_encoder or "", rate))
        self.stream.codec_context.layout = self.layout = AUDIO_LAYOUTS[channels]
        if not spec.lossless:
            self.stream.bit_rate = AUDIO_BIT_RATE_PER_CHANNEL * channels

    def write_until(self, num_frames: int) -> None:
        """Writes the samples of the first `num_frames` frames that are not yet written."""
        import av

        waveform, sample_rate = self.audio.waveform, self.audio.sample_rate
        end = min(waveform.shape[1], round(num_frames * sample_rate / self.frame_rate))
        if end <= self.done:
            return
        samples = waveform[:, self.done : end].detach().float().clamp(-1, 1).cpu()
        interleaved = samples.T.reshape(1, -1).contiguous().numpy()
        chunk = av.AudioFrame.from_ndarray(interleaved, format="flt", layout=self.layout)
        chunk.sample_rate, chunk.pts, chunk.time_base = sample_rate, self.done, Fraction(1, sample_rate)
        self.container.mux(self.stream.encode(chunk))
        self.done = end

    def finish(self) -> None:
        """Writes the frames that the encoder still holds."""
        self.container.mux(self.stream.encode(None))

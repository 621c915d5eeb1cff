"""Video files: the table of formats, the options of one file and the report about it."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

from torch import Tensor

from ...common.errors import BackendUnavailableError, InputError
from ...common.validation import shown

NTSC_RATES = {base: Fraction(base * 1000, 1001) for base in (24, 30, 48, 60, 120)}
MIN_FPS, MAX_FPS = 0.01, 1000.0

OnFrame = Callable[[int, int], None]


@dataclass(frozen=True)
class VideoFormat:
    """One row of `FORMATS`: how a kind of file is written.

    `container` and `encoder` are the names that FFmpeg, or Pillow for an image, gives them. `crf` is the
    quality scale, lower is better; a format without `crf_range` has none. `alpha_pix_fmt` is the pixels' format with
    transparency, where the kind of file holds it. `has_workflow` says whether ComfyUI's page reads one out of it.
    """

    container: str
    encoder: str
    suffix: str
    mime: str
    pix_fmt: str = "yuv420p"
    alpha_pix_fmt: str | None = None
    has_workflow: bool = True
    lossless: bool = False
    default_crf: float | None = None
    crf_range: tuple[float, float] | None = None
    max_fps: float = MAX_FPS
    min_width: int = 1
    max_side: int | None = None
    audio_encoder: str | None = None
    audio_rates: tuple[int, ...] | None = None
    encoder_options: Mapping[str, str] = field(default_factory=dict)
    container_options: Mapping[str, str] = field(default_factory=dict)
    codec_tag: str | None = None

    @property
    def is_image(self) -> bool:
        """Whether Pillow writes it as an animated image, and not PyAV as a video."""
        return self.mime.startswith("image/")

    @property
    def is_rgb(self) -> bool:
        """Whether pixels are stored as RGB, and not as BT.709 luma and halved chroma."""
        return self.pix_fmt != "yuv420p"

    def audio_rate(self, sample_rate: int) -> int:
        """The sample rate in hertz that sound of `sample_rate` gets in this format."""
        if self.audio_rates is None or sample_rate in self.audio_rates:
            return sample_rate
        return self.audio_rates[0]


_AAC_RATES = (48000, 96000, 88200, 64000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000)
# faststart puts the index first, so that a browser plays before it has the whole file; use_metadata_tags lets
# an mp4 keep keys of our own, such as "workflow".
_MP4 = {"movflags": "use_metadata_tags+faststart"}
_VP9_OPTIONS = {"deadline": "good", "cpu-used": "4", "row-mt": "1"}

FORMATS: Mapping[str, VideoFormat] = {
    # x264's "faster" writes clips in half the time of its default, as large and no further from the frames.
    "mp4-h264": VideoFormat(
        "mp4",
        "libx264",
        ".mp4",
        "video/mp4",
        default_crf=19,
        crf_range=(0, 51),
        encoder_options={"preset": "faster"},
        audio_encoder="aac",
        audio_rates=_AAC_RATES,
        container_options=_MP4,
    ),
    # hvc1 and not FFmpeg's own hev1: Apple's players show nothing for the latter.
    "mp4-h265": VideoFormat(
        "mp4",
        "libx265",
        ".mp4",
        "video/mp4",
        default_crf=22,
        crf_range=(0, 51),
        codec_tag="hvc1",
        audio_encoder="aac",
        audio_rates=_AAC_RATES,
        container_options=_MP4,
    ),
    "webm-vp9": VideoFormat(
        "webm",
        "libvpx-vp9",
        ".webm",
        "video/webm",
        alpha_pix_fmt="yuva420p",
        default_crf=30,
        crf_range=(0, 63),
        audio_encoder="libopus",
        audio_rates=(48000,),
        encoder_options=_VP9_OPTIONS,
    ),
    # Frames up to 24 pixels wide make SVT-AV1 (seen in 4.1) write past the end of a buffer.
    "webm-av1": VideoFormat(
        "webm",
        "libsvtav1",
        ".webm",
        "video/webm",
        default_crf=30,
        crf_range=(0, 63),
        min_width=32,
        audio_encoder="libopus",
        audio_rates=(48000,),
        encoder_options={"preset": "8"},
    ),
    # bgr0 and not a yuv format: ffv1 keeps 8-bit RGB to the last bit only when it is given RGB.
    "mkv-ffv1": VideoFormat(
        "matroska",
        "ffv1",
        ".mkv",
        "video/x-matroska",
        pix_fmt="bgr0",
        alpha_pix_fmt="bgra",
        has_workflow=False,
        lossless=True,
        audio_encoder="pcm_f32le",
        encoder_options={"level": "3", "slicecrc": "1"},
    ),
    # Browsers slow an animation down to 10 frames a second when a frame is shorter than about 11 ms (webp) or
    # 20 ms (gif).
    "webp": VideoFormat(
        "WEBP",
        "webp",
        ".webp",
        "image/webp",
        pix_fmt="rgb24",
        alpha_pix_fmt="rgba",
        default_crf=20,
        crf_range=(0, 100),
        max_fps=90.0,
        max_side=16383,
    ),
    "gif": VideoFormat(
        "GIF",
        "gif",
        ".gif",
        "image/gif",
        pix_fmt="pal8",
        alpha_pix_fmt="pal8",
        has_workflow=False,
        max_fps=50.0,
        max_side=65535,
    ),
}


@dataclass(frozen=True)
class VideoOptions:
    """Options of one file: a key of `FORMATS`, frames per second, quality (None: the format's default).

    With `pingpong` the frames play forward and then backward; the two ends are shown once each.

    Raises:
        InputError: an unknown format, an fps that is not a number from 0.01 to 1000, a crf outside the range.
    """

    format: str
    fps: float
    crf: float | None = None
    pingpong: bool = False

    def __post_init__(self) -> None:
        if self.format not in FORMATS:
            raise InputError(f"The format must be one of {', '.join(FORMATS)}, but it is {shown(self.format)}.")
        if not (_is_finite(self.fps) and MIN_FPS <= self.fps <= MAX_FPS):
            raise InputError(f"fps must be a number from {MIN_FPS:g} to {MAX_FPS:g}, but it is {shown(self.fps)}.")
        low, high = self.spec.crf_range or (-math.inf, math.inf)
        if self.crf is not None and not (_is_finite(self.crf) and low <= self.crf <= high):
            raise InputError(
                f"crf must be a number from {low:g} to {high:g} for {self.format}, but it is {shown(self.crf)}."
            )

    @property
    def spec(self) -> VideoFormat:
        """The format's row in the table."""
        return FORMATS[self.format]

    @property
    def rate(self) -> Fraction:
        """The frame rate that the file gets, as a fraction that a container can hold."""
        return exact_rate(min(self.fps, self.spec.max_fps))

    @property
    def used_crf(self) -> float | None:
        """The quality that the encoder gets; None where the format has no such scale."""
        if self.spec.crf_range is None:
            return None
        return self.spec.default_crf if self.crf is None else self.crf


@dataclass(frozen=True)
class Audio:
    """Sound: `waveform` of floats from -1 to 1 as [channels, samples], `sample_rate` in hertz."""

    waveform: Tensor
    sample_rate: int


@dataclass(frozen=True)
class VideoInfo:
    """Report about a written file. `width` and `height` are the file's; `notes` are sentences on adaptations."""

    path: Path
    format: str
    width: int
    height: int
    num_frames: int
    fps: float
    size_bytes: int
    notes: tuple[str, ...]

    @property
    def duration_s(self) -> float:
        """Playing time in seconds."""
        return self.num_frames / self.fps


def exact_rate(fps: float) -> Fraction:
    """`fps` as a fraction with a small denominator; 23.976, 29.97 and their like become the NTSC rates."""
    for ntsc in NTSC_RATES.values():
        if abs(fps - ntsc) < 0.005:
            return ntsc
    return Fraction(fps).limit_denominator(1001)


def file_size(height: int, width: int, spec: VideoFormat) -> tuple[int, int]:
    """Height and width of the file: those of the frames, made even where the colour planes are halved."""
    if spec.is_rgb:
        return height, width
    return height + height % 2, width + width % 2


def available_formats() -> tuple[str, ...]:
    """Keys of `FORMATS` that this installation can write."""
    encoders = _encoders()
    return tuple(key for key, spec in FORMATS.items() if spec.encoder in encoders)


def require_encoder(key: str, encoder: str) -> None:
    """Raises BackendUnavailableError where `encoder`, which the format `key` needs, is not installed."""
    if encoder not in _encoders():
        usable = ", ".join(available_formats()) or "none"
        raise BackendUnavailableError(
            f"{key} needs the encoder {encoder}, which the installed PyAV and Pillow do not have; "
            f"formats available here: {usable}."
        )


def as_json(metadata: Mapping[str, object] | None) -> dict[str, str]:
    """Each value as JSON text, the way ComfyUI stores a workflow and a prompt in a file.

    NaN and infinity, with which nodes say that they always run anew, become null: JSON has no words for them, and a
    page that meets one opens nothing.
    """
    texts: dict[str, str] = {}
    for key, value in (metadata or {}).items():
        try:
            texts[key] = json.dumps(_finite(value), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise InputError(f"The metadata {key!r} cannot be stored as JSON: {error}.") from error
    return texts


def _finite(value: object) -> object:
    """The value with null in place of numbers that JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _encoders() -> set[str]:
    from PIL import features

    found = {"gif"} | ({"webp"} if features.check("webp") else set())
    try:
        import av
    except ImportError:
        return found
    return found | set(av.codecs_available)

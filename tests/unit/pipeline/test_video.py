"""Video files, written and read back: frames, colours, timing, sound and metadata."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from torch import Tensor

from i2v_tensorrt.pipeline.media.container import AHEAD
from i2v_tensorrt.pipeline.media.formats import FORMATS, Audio, VideoInfo, VideoOptions, exact_rate
from i2v_tensorrt.pipeline.media.reader import to_rgb
from i2v_tensorrt.pipeline.media.video import write_video

ALL = list(FORMATS)
CONTAINERS = [key for key, spec in FORMATS.items() if not spec.is_image]
IMAGES = [key for key, spec in FORMATS.items() if spec.is_image]
LOSSY = [key for key in CONTAINERS if not FORMATS[key].lossless]
METADATA = {"prompt": {"3": {"class_type": "A", "text": "café 日本\n\"'=;:"}}, "workflow": {"nodes": [1, 2]}}


def smooth_clip(num_frames: int = 6, height: int = 48, width: int = 64) -> Tensor:
    """A slow gradient whose brightness tells the frames apart, in whole levels of 8 bits."""
    y, x = torch.meshgrid(torch.linspace(0, 0.3, height), torch.linspace(0, 0.3, width), indexing="ij")
    levels = torch.linspace(0.1, 0.6, num_frames)[:, None, None]
    clip = torch.stack([x + levels, y + levels, 0.9 - x - levels.expand(-1, height, width)], dim=-1)
    return (clip * 255).round() / 255


def write(folder: Path, key: str, frames: Tensor, *, fps: float = 8, **rest: Any) -> VideoInfo:
    options = VideoOptions(key, fps, rest.pop("crf", None), rest.pop("pingpong", False))
    return write_video(frames, folder / f"clip{FORMATS[key].suffix}", options, **rest)


def read(info: VideoInfo) -> np.ndarray:
    """The file's frames as 8-bit RGB [frames, height, width, 3], colours by the file's own tags."""
    if FORMATS[info.format].is_image:
        with Image.open(info.path) as image:
            return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)])
    with av.open(str(info.path)) as container:
        return np.stack([to_rgb(frame) for frame in container.decode(video=0)])


def psnr8(a: np.ndarray, b: np.ndarray) -> float:
    return 10 * math.log10(255**2 / max(1e-9, np.mean((a.astype(float) - b.astype(float)) ** 2)))


def levels(frames: Tensor) -> np.ndarray:
    return (frames.numpy().astype(np.float64) * 255).round().astype(np.uint8)


def first_frame(info: VideoInfo) -> av.VideoFrame:
    with av.open(str(info.path)) as container:
        return next(container.decode(video=0))


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("num_frames", [1, 2, 3, 6])
def test_frames_come_back(tmp_path: Path, key: str, num_frames: int) -> None:
    """Several times over: x265 can give clips of 1 and 2 frames time stamps out of memory never set."""
    frames = smooth_clip(num_frames)
    for _ in range(4):
        info = write(tmp_path, key, frames)
        decoded = read(info)
        assert decoded.shape == (num_frames, 48, 64, 3)
        for found, expected in zip(decoded, levels(frames), strict=True):
            assert psnr8(found, expected) > 33
        assert (info.width, info.height, info.num_frames, info.fps) == (64, 48, num_frames, 8.0)
        assert (info.duration_s, info.notes) == (num_frames / 8, ())
        assert info.size_bytes == info.path.stat().st_size > 0
        assert list(tmp_path.iterdir()) == [info.path]


def noise(num_frames: int = 3, height: int = 64, width: int = 64) -> Tensor:
    return torch.rand((num_frames, height, width, 3), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("key", "crf"), [("mkv-ffv1", None), ("webp", 0)])
def test_lossless_is_bit_exact(tmp_path: Path, key: str, crf: float | None) -> None:
    frames = noise(4, 33, 21)
    assert np.array_equal(read(write(tmp_path, key, frames, crf=crf)), levels(frames))


def test_values_are_rounded_to_nearest_and_clamped(tmp_path: Path) -> None:
    exact = torch.arange(256).repeat(3, 1).T.reshape(1, 16, 16, 3)
    shifted = (exact + torch.tensor([-0.45, 0.0, 0.45])) / 255
    assert np.array_equal(read(write(tmp_path, "mkv-ffv1", shifted)), exact.numpy())
    wild = torch.tensor([-5.0, 0.5, 7.0]).expand(1, 2, 2, 3)
    assert read(write(tmp_path, "mkv-ffv1", wild))[0, 0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("key", [*LOSSY, *IMAGES])
@pytest.mark.parametrize("colour", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 1, 1), (0.8, 0.3, 0.5)])
def test_saturated_colours_come_back(tmp_path: Path, key: str, colour: tuple[float, float, float]) -> None:
    frames = torch.tensor(colour, dtype=torch.float32).expand(2, 32, 32, 3)
    decoded = read(write(tmp_path, key, frames)).astype(int)
    assert np.abs(decoded - np.array(colour) * 255).max() <= 5


@pytest.mark.parametrize(
    ("colour", "planes"),
    [
        ((1, 0, 0), (63, 102, 240)),
        ((0, 1, 0), (173, 42, 26)),
        ((0, 0, 1), (32, 240, 118)),
        ((1, 1, 1), (235, 128, 128)),
        ((0, 0, 0), (16, 128, 128)),
    ],
)
def test_colour_is_converted_with_bt709(tmp_path: Path, colour: tuple, planes: tuple) -> None:
    """Against 8-bit limited-range luma and chroma of pure colours, rounded from ITU-R BT.709-6."""
    info = write(tmp_path, "mp4-h264", torch.tensor(colour).float().expand(1, 32, 32, 3), crf=1)
    found = [bytes(plane)[0] for plane in first_frame(info).planes]
    assert np.abs(np.subtract(found, planes)).max() <= 1


@pytest.mark.parametrize("key", CONTAINERS)
def test_colours_are_tagged(tmp_path: Path, key: str) -> None:
    frame = first_frame(write(tmp_path, key, smooth_clip()))
    lossless = FORMATS[key].lossless
    if hasattr(frame, "color_primaries"):  # from PyAV 17 on
        assert frame.color_primaries == 1, "BT.709"
        assert frame.color_trc == 13, "IEC 61966-2-1"
    assert frame.colorspace == (0 if lossless else 1)
    assert frame.color_range == (2 if lossless else 1), "full or limited range"


@pytest.mark.parametrize("key", ALL)
def test_odd_sizes(tmp_path: Path, key: str) -> None:
    frames = smooth_clip(2, height=33, width=47)
    info = write(tmp_path, key, frames)
    decoded = read(info)
    padded = not FORMATS[key].is_rgb
    assert decoded.shape[1:3] == (info.height, info.width) == ((34, 48) if padded else (33, 47))
    assert psnr8(decoded[:, :33, :47], levels(frames)) > 33
    if padded:
        edge = levels(frames)[:, [*range(33), 32]][:, :, [46]]
        assert psnr8(decoded[:, :, 47:], edge) > 30
        assert len(info.notes) == 1 and "47x33 to 48x34" in info.notes[0]
    else:
        assert info.notes == ()


@pytest.mark.parametrize("key", ["mp4-h264", "webm-vp9", "mkv-ffv1", "webp", "gif"])
def test_one_pixel(tmp_path: Path, key: str) -> None:
    decoded = read(write(tmp_path, key, torch.full((2, 1, 1, 3), 0.5)))
    assert np.abs(decoded.astype(int) - 128).max() <= 3


def test_narrow_h265(tmp_path: Path) -> None:
    """x265's own settings write past the end of a buffer here, which can end the process."""
    frames = smooth_clip(12, 16, 16)
    for _ in range(10):
        assert psnr8(read(write(tmp_path, "mp4-h265", frames)), levels(frames)) > 33


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions(tmp_path: Path, dtype: torch.dtype) -> None:
    exact = torch.arange(48).reshape(1, 4, 4, 3) / 48
    decoded = read(write(tmp_path, "mkv-ffv1", exact.to(dtype).requires_grad_()))
    assert np.abs(decoded.astype(int) - levels(exact)).max() <= 1


def test_grey_is_repeated(tmp_path: Path) -> None:
    grey = torch.tensor([0.2, 0.6]).reshape(1, 1, 2, 1)
    assert read(write(tmp_path, "mkv-ffv1", grey))[0, 0].tolist() == [[51] * 3, [153] * 3]


def test_a_format_whose_workflow_the_page_does_not_open_says_so(tmp_path: Path) -> None:
    for key, spec in FORMATS.items():
        notes = write(tmp_path, key, smooth_clip(), metadata={"workflow": {"nodes": []}}).notes
        assert bool([note for note in notes if "page opens none from" in note]) == (not spec.has_workflow)
    assert not write(tmp_path, "gif", smooth_clip(), metadata={"prompt": {}}).notes, "there is none"


@pytest.mark.parametrize(
    ("num_frames", "order"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2, 1]), (5, [0, 1, 2, 3, 4, 3, 2, 1])]
)
def test_pingpong(tmp_path: Path, num_frames: int, order: list[int]) -> None:
    frames = smooth_clip(num_frames, 16, 16)
    info = write(tmp_path, "mkv-ffv1", frames, pingpong=True)
    assert np.array_equal(read(info), levels(frames)[order])
    assert info.num_frames == len(order)


@pytest.mark.parametrize(
    ("fps", "rate"),
    [
        (8, Fraction(8)),
        (7.5, Fraction(15, 2)),
        (23.976, Fraction(24000, 1001)),
        (23.98, Fraction(24000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (24.0, Fraction(24)),
        (0.01, Fraction(1, 100)),
        (12.345, Fraction(2469, 200)),
        (1000, Fraction(1000)),
    ],
)
def test_fps_becomes_a_sane_fraction(fps: float, rate: Fraction) -> None:
    assert exact_rate(fps) == rate


@pytest.mark.parametrize("key", CONTAINERS)
@pytest.mark.parametrize("fps", [0.5, 7.5, 23.976, 60])
def test_timing(tmp_path: Path, key: str, fps: float) -> None:
    info = write(tmp_path, key, smooth_clip(5, 32, 32), fps=fps)
    with av.open(str(info.path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
        duration = container.duration / av.time_base
    assert times == pytest.approx([index / info.fps for index in range(5)], abs=0.001)
    assert duration == pytest.approx(info.duration_s, abs=0.001)
    assert info.fps == pytest.approx(fps, rel=1e-4)


@pytest.mark.parametrize(("key", "unit_ms"), [("webp", 1), ("gif", 10)])
@pytest.mark.parametrize("fps", [0.5, 7.5, 24, 29.97])
def test_timing_of_animations(tmp_path: Path, key: str, unit_ms: int, fps: float) -> None:
    info = write(tmp_path, key, smooth_clip(12, 16, 16), fps=fps)
    ends, now = [], 0
    with Image.open(info.path) as image:
        assert (image.n_frames, image.info["loop"]) == (12, 0)
        for frame in ImageSequence.Iterator(image):
            frame.load()
            now += frame.info["duration"]
            ends.append(now)
    expected = [(index + 1) * 1000 / info.fps for index in range(12)]
    assert ends == pytest.approx(expected, abs=unit_ms / 2 + 1e-6)


@pytest.mark.parametrize("key", [*LOSSY, "webp"])
def test_crf_trades_quality_for_size(tmp_path: Path, key: str) -> None:
    sizes = {crf: write(tmp_path, key, noise(), crf=crf).size_bytes for crf in (5, 20.5, 50)}
    assert sizes[5] > sizes[20.5] > sizes[50]


@pytest.mark.parametrize(
    ("key", "word", "options"),
    [
        ("mkv-ffv1", "not used", {"crf": 0}),
        ("gif", "not used", {"crf": 0}),
        ("mp4-h264", "browsers", {"crf": 0}),
        *((key, "no sound", {"audio": Audio(torch.zeros(1, 44_100), 44_100)}) for key in IMAGES),
        ("gif", "50 fps instead of 120", {"fps": 120}),
        ("webp", "90 fps instead of 120", {"fps": 120}),
    ],
)
def test_what_has_not_its_usual_effect_is_told(tmp_path: Path, key: str, word: str, options: dict[str, Any]) -> None:
    """An animation plays no faster than browsers show."""
    info = write(tmp_path, key, smooth_clip(2), **options)
    assert len(info.notes) == 1 and word in info.notes[0]
    assert "fps" not in options or word.startswith(f"{info.fps:g} fps ")


@pytest.mark.parametrize("key", ["mp4-h264", "webp"])
def test_numbers_that_json_has_not_become_null(tmp_path: Path, key: str) -> None:
    """Nodes that run at every prompt write NaN into it, and a page that meets one opens no workflow."""
    endless = {"3": {"is_changed": [math.nan, (math.inf, 1.5)], "class_type": "Load Image Batch"}}
    info = write(tmp_path, key, smooth_clip(), metadata={"prompt": endless})
    if key == "webp":
        with Image.open(info.path) as image:
            text = str(image.getexif()[0x0110]).removeprefix("prompt:")
    else:
        with av.open(str(info.path)) as container:
            text = container.metadata["prompt"]
    found = json.loads(text, parse_constant=pytest.fail)
    assert found == {"3": {"is_changed": [None, [None, 1.5]], "class_type": "Load Image Batch"}}


def test_gif_has_one_palette(tmp_path: Path) -> None:
    decoded = read(write(tmp_path, "gif", smooth_clip()))
    assert 64 < len(np.unique(decoded.reshape(-1, 3), axis=0)) <= 256


def stored(info: VideoInfo) -> dict[str, Any]:
    """The metadata of a file."""
    if not FORMATS[info.format].is_image:
        with av.open(str(info.path)) as container:
            # Matroska spells its keys in capitals, and adds some.
            texts = {name.lower(): text for name, text in container.metadata.items()}
            return {name: json.loads(text) for name, text in texts.items() if text[:1] in "[{"}
    with Image.open(info.path) as image:
        if info.format == "gif":
            return json.loads(image.info["comment"])
        exif = dict(image.getexif())
    assert exif[0x0110].startswith("prompt:") and exif[0x010F].startswith("workflow:")
    return {name: json.loads(text) for name, _, text in (value.partition(":") for value in exif.values())}


@pytest.mark.parametrize("num_frames", [1, 3])
@pytest.mark.parametrize("key", ALL)
def test_metadata_comes_back(tmp_path: Path, key: str, num_frames: int) -> None:
    long = {"extra": list(range(1000 if key == "gif" else 50_000))}
    packs = {f"pack{index}": {"value": index} for index in range(12)}
    metadata = METADATA | (packs if key == "webp" else long)
    assert stored(write(tmp_path, key, smooth_clip(num_frames), metadata=metadata)) == metadata


@pytest.mark.parametrize("key", IMAGES)
def test_no_metadata_leaves_no_trace(tmp_path: Path, key: str) -> None:
    with Image.open(write(tmp_path, key, smooth_clip(2)).path) as image:
        assert not image.getexif() and "comment" not in image.info


@pytest.mark.parametrize(("key", "tag"), [("mp4-h264", "avc1"), ("mp4-h265", "hvc1")])
def test_mp4_plays_in_browsers(tmp_path: Path, key: str, tag: str) -> None:
    info = write(tmp_path, key, smooth_clip(), audio=tone(1.0))
    data = info.path.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")
    with av.open(str(info.path)) as container:
        video = container.streams.video[0].codec_context
        assert (video.codec_tag, video.pix_fmt) == (tag, "yuv420p")
        assert container.streams.audio[0].codec_context.name == "aac"


def tone(seconds: float, *, rate: int = 44_100, channels: int = 2, hertz: float = 440.0) -> Audio:
    wave = 0.5 * torch.sin(2 * torch.pi * hertz * torch.arange(round(seconds * rate)) / rate)
    return Audio(wave.repeat(channels, 1), rate)


def read_sound(path: Path) -> tuple[np.ndarray, int]:
    """Samples as float [channels, samples], and the sample rate."""
    with av.open(str(path)) as container:
        stream = container.streams.audio[0]
        resampler = av.AudioResampler("flt")
        frames = [out for frame in container.decode(stream) for out in resampler.resample(frame)]
        interleaved = np.concatenate([frame.to_ndarray() for frame in frames], axis=1)
        return interleaved.reshape(-1, stream.channels).T, stream.rate


@pytest.mark.parametrize("key", CONTAINERS)
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (8_000, 1), (37_800, 2), (48_000, 6), (96_000, 8)])
def test_audio_is_kept(tmp_path: Path, key: str, rate: int, channels: int) -> None:
    info = write(tmp_path, key, smooth_clip(16, 32, 32), audio=tone(5, rate=rate, channels=channels))
    sound, found_rate = read_sound(info.path)
    assert len(sound) == channels
    assert sound.shape[1] / found_rate == pytest.approx(2.0, abs=0.15)  # codecs fill up their last block
    spectrum = np.abs(np.fft.rfft(sound[0, : found_rate * 2 - found_rate // 4]))
    assert spectrum.argmax() * found_rate / (found_rate * 2 - found_rate // 4) == pytest.approx(440, abs=1)
    assert np.abs(sound[0, found_rate // 2 : found_rate]).max() == pytest.approx(0.5, abs=0.1)


def test_lossless_audio_is_exact_and_cut_to_the_video(tmp_path: Path) -> None:
    wave = torch.rand((2, 30_000), generator=torch.Generator().manual_seed(5)) * 2 - 1
    info = write(tmp_path, "mkv-ffv1", smooth_clip(6, 16, 16), audio=Audio(wave, 22_050))
    sound, rate = read_sound(info.path)
    assert rate == 22_050
    assert np.array_equal(sound, wave[:, : round(0.75 * 22_050)].numpy())


def test_short_audio_ends_early_and_pingpong_plays_more_of_it(tmp_path: Path) -> None:
    wave = tone(0.25, rate=8_000)
    for pingpong, audio, samples in ((False, wave, 2_000), (True, tone(9, rate=8_000), 10_000)):
        info = write(tmp_path, "mkv-ffv1", smooth_clip(6, 16, 16), audio=audio, pingpong=pingpong)
        assert read_sound(info.path)[0].shape[1] == samples


@pytest.mark.parametrize("key", CONTAINERS)
def test_sound_lies_beside_its_frames(tmp_path: Path, key: str) -> None:
    info = write(tmp_path, key, smooth_clip(24, 32, 32), fps=1, audio=tone(24, rate=8_000))
    with av.open(str(info.path)) as container:
        last = {"video": 0.0, "audio": 0.0}
        for packet in container.demux():
            if packet.dts is not None:
                last[packet.stream.type] = float(packet.dts * packet.time_base)
                assert abs(last["video"] - last["audio"]) < 4
    assert min(last.values()) > 20


@pytest.mark.parametrize("key", ALL)
def test_progress_is_told_after_each_frame(tmp_path: Path, key: str) -> None:
    calls: list[tuple[int, int]] = []
    write(tmp_path, key, smooth_clip(3), pingpong=True, on_frame=lambda *call: calls.append(call))
    assert calls == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("key", ["mp4-h264", "webp"])
def test_frames_are_converted_as_they_are_needed(tmp_path: Path, key: str) -> None:
    """None is looked at long before its turn: the caller's stop comes before the fault in a frame."""
    frames = smooth_clip(8)
    frames[3 + AHEAD] = torch.nan

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, key, frames, on_frame=stop)
    assert list(tmp_path.iterdir()) == []

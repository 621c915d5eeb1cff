"""What a video writer must refuse, and what must not be left behind."""

import errno
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

from i2v_tensorrt.common.errors import BackendUnavailableError, InputError, StorageError
from i2v_tensorrt.pipeline.media.formats import FORMATS, Audio, VideoInfo, VideoOptions, available_formats
from i2v_tensorrt.pipeline.media.video import write_video

from ..helpers.refusals import refused
from ..helpers.toys import fail

ALL = list(FORMATS)


def noise(num_frames: int = 12, side: int = 64) -> Tensor:
    return torch.rand((num_frames, side, side, 3), generator=torch.Generator().manual_seed(9))


def write(folder: Path, key: str = "mp4-h264", frames: Any = None, **more: Any) -> VideoInfo:
    """Two frames of noise, if no others, in a file of the format's own name."""
    frames = noise(2) if frames is None else frames
    return write_video(frames, more.pop("path", target(folder, key)), VideoOptions(key, 8), **more)


def target(folder: Path, key: str = "mp4-h264") -> Path:
    return folder / f"clip{FORMATS[key].suffix}"


def with_value(value: float) -> Tensor:
    frames = noise(4, 32)
    frames[2, 3, 4, 1] = value
    return frames


REFUSED: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("mp4-h264", word, {"frames": frames})
        for frames, word in [
            (torch.zeros(8, 8, 3), r"\[8, 8, 3\]"),
            (torch.zeros(1, 2, 8, 8, 3), r"\[1, 2, 8, 8, 3\]"),
            (torch.zeros(0, 8, 8, 3), "at least one frame"),
            (torch.zeros(2, 0, 8, 3), "at least one pixel"),
            (torch.zeros(2, 8, 0, 3), "at least one pixel"),
            (torch.zeros(2, 8, 8, 2), "they have 2"),
            (torch.zeros(2, 8, 8, 0), "they have 0"),
            (torch.zeros(2, 3, 8, 8), "they have 8"),
            (torch.zeros(2, 8, 8, 3, dtype=torch.uint8), "torch.uint8"),
            ([[1.0]], "list"),
        ]
    ),
    *(
        (key, "frame 2 holds NaN or infinity", {"frames": with_value(value)})
        for key in ALL
        for value in (math.nan, math.inf, -math.inf)
    ),
    *(
        (key, word, {"audio": (waveform, rate)})
        for key in ("mp4-h264", "gif")
        for waveform, rate, word in [
            (torch.zeros(100), 8_000, r"\[100\]"),
            (torch.zeros(1, 2, 100), 8_000, r"\[1, 2, 100\]"),
            (torch.zeros(2, 0), 8_000, "at least one sample"),
            (torch.zeros(2, 100, dtype=torch.int16), 8_000, "torch.int16"),
            (torch.zeros(3, 100), 8_000, "it has 3"),
            (torch.full((1, 100), torch.nan), 8_000, "NaN or infinity"),
            (torch.zeros(1, 100), 0, "it is 0"),
            (torch.zeros(1, 100), -44_100, "it is -44100"),
            (torch.zeros(1, 100), 10**9, "it is 1000000000"),
        ]
    ),
    *(
        ("mp4-h264", f"must end in .mp4, but it is '{name}'", {"name": name})
        for name in ("clip.webm", "clip", "clip.mp4.exe")
    ),
    *(
        ("mp4-h264", "'workflow' cannot be stored as JSON", {"metadata": {"prompt": {}, "workflow": value}})
        for value in ({1, 2}, torch.zeros(2), b"bytes")
    ),
    ("mp4-h265", "frames of 4x4 at 8 fps: the encoder libx265 said", {"frames": noise(2, 4)}),
    *(
        ("webm-av1", f"at least 32 pixels wide, but they are {width}x64", {"frames": torch.zeros(1, 64, width, 3)})
        for width in (1, 24, 31)
    ),
    ("webp", "but frames are 16384x1", {"frames": torch.zeros(1, 1, 16_384, 3)}),
    ("gif", "but frames are 65536x1", {"frames": torch.zeros(1, 1, 65_536, 3)}),
]


@pytest.mark.parametrize(("key", "words", "what"), REFUSED)
def test_what_no_video_can_be_made_of_is_refused(tmp_path: Path, key: str, words: str, what: dict[str, Any]) -> None:
    """Frames, sound, names, metadata, and sizes that an encoder or a format does not take."""
    more = {"path": tmp_path / what["name"]} if "name" in what else {}
    with refused(InputError, words):
        audio = Audio(*what["audio"]) if "audio" in what else None
        write(tmp_path, key, what.get("frames"), audio=audio, metadata=what.get("metadata"), **more)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        *(
            (("mp4-h264", fps), "fps must be a number from 0.01 to 1000")
            for fps in (math.nan, math.inf, -math.inf, 0, -8, 0.001, 1001, 1e300, True, None, "8")
        ),
        *(
            ((key, 8, crf), f"crf must be a number .* for {key}")
            for key, crf in [
                ("mp4-h264", 52),
                ("mp4-h265", -1),
                ("webm-vp9", 64),
                ("webm-av1", 63.5),
                ("webp", 101),
                *product(("mp4-h264", "mkv-ffv1", "gif"), (math.nan, math.inf, "high", True)),
            ]
        ),
        *(((key, 8), "one of mp4-h264, .*, gif") for key in ("", "mp4", "avi", "../mp4-h264")),
    ],
)
def test_options_that_no_video_has_are_refused(given: tuple[Any, ...], words: str) -> None:
    with refused(InputError, words):
        VideoOptions(*given)


@pytest.mark.parametrize(("key", "encoder"), [("mp4-h265", "libx265"), ("webm-av1", "libsvtav1"), ("mp4-h264", "aac")])
def test_a_missing_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, encoder: str) -> None:
    monkeypatch.setattr(av, "codecs_available", av.codecs_available - {encoder})
    with refused(BackendUnavailableError, f"{key} needs the encoder {encoder}") as error:
        write(tmp_path, key, audio=Audio(torch.zeros(1, 100), 8_000))
    assert "mkv-ffv1, webp, gif" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_images_need_no_pyav(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert available_formats() == ("webp", "gif")
    assert write(tmp_path, "gif").size_bytes > 0
    with pytest.raises(BackendUnavailableError, match="available here: webp, gif"):
        write(tmp_path)


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """A real failure while writing, as on a full disk: no file of this process grows beyond `size_bytes`."""
    resource = pytest.importorskip("resource", reason="needs a POSIX system")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("missing_bytes", [1, 5_000, None])
def test_a_full_disk(tmp_path: Path, key: str, missing_bytes: int | None) -> None:
    """Whether nothing, most or all but one byte fits: a sentence, and the file that was there stays."""
    path = target(tmp_path, key)
    frames = noise(2, 128)  # a longer h265 file differs by some bytes from run to run
    size_bytes = write(tmp_path, key, frames).size_bytes
    before = path.read_bytes()
    with largest_file(0 if missing_bytes is None else size_bytes - missing_bytes):
        with refused(StorageError, "could not be written") as error:
            write(tmp_path, key, frames)
    assert str(path) in str(error.value)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


@pytest.mark.parametrize("key", ["mp4-h264", "gif"])
@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_disk_that_fails_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, function: str) -> None:
    monkeypatch.setattr(os, function, fail(errno.ENOSPC))
    with pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        write(tmp_path, key)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("key", ["mp4-h264", "webp"])
def test_a_folder_that_is_not_there_or_where_the_file_should_be(tmp_path: Path, key: str) -> None:
    with pytest.raises(StorageError, match="No such file or directory") as error:
        write(tmp_path / "missing", key)
    assert str(target(tmp_path / "missing", key)) in str(error.value)
    path = target(tmp_path, key)
    path.mkdir()
    with pytest.raises(StorageError):
        write(tmp_path, key)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("key", ALL)
@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_an_interrupt_leaves_nothing(tmp_path: Path, key: str, kind: type[BaseException]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 5:
            raise kind("stop")

    with pytest.raises(kind, match="stop"):
        write(tmp_path, key, noise(), on_frame=stop)
    assert list(tmp_path.iterdir()) == []

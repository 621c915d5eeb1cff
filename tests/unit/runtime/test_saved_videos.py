"""The same request for a video has the same name, any other has another; what was noted outlives the process."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.pipeline.media.formats import Audio, VideoOptions
from i2v_tensorrt.pipeline.request import Encoded
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime.saved_videos import LIMITS, SavedVideo, note, noted, video_key

OPTIONS = VideoOptions("mp4-h264", 8.0, None, False)
SOUND = Audio(torch.linspace(-1, 1, 100).reshape(1, 100), 8000)
VIDEO = SavedVideo("video", "clip_00001_.mp4", "a" * 64, ("video/clip_00001_.mp4", "8 frames"), 1.5)
OTHERS: dict[str, dict[str, Any]] = {
    "another value": {"frames": torch.full((2, 4, 4, 3), 0.5)},
    "another shape": {"frames": torch.zeros(2, 4, 3, 4)},
    "another type": {"frames": torch.zeros(2, 4, 4, 3, dtype=torch.float64)},
    "fps": {"options": replace(OPTIONS, fps=9.0)},
    "format": {"options": replace(OPTIONS, format="webp")},
    "crf": {"options": replace(OPTIONS, crf=20)},
    "pingpong": {"options": replace(OPTIONS, pingpong=True)},
    "no sound": {"audio": None},
    "another sound": {"audio": replace(SOUND, waveform=-SOUND.waveform)},
    "another rate": {"audio": replace(SOUND, sample_rate=16000)},
    "another workflow": {"metadata": {"workflow": {"nodes": [1]}}},
    "no workflow": {"metadata": {}},
    "another name": {"name": "video/other"},
}


def key_of(**changes: Any) -> str:
    metadata = {"workflow": {"nodes": [], "scale": float("nan")}}
    wish = {"frames": torch.zeros(2, 4, 4, 3), "options": OPTIONS, "audio": SOUND, "metadata": metadata, "name": "clip"}
    return video_key(**{**wish, **changes})


@pytest.mark.parametrize("change", OTHERS)
def test_another_request_has_another_name(change: str) -> None:
    assert key_of(**OTHERS[change]) != key_of() == key_of()


def test_a_note_outlives_the_process_and_one_that_is_damaged_or_of_another_kind_is_none(tmp_path: Path) -> None:
    key, notes = key_of(), ConditioningCache(tmp_path, LIMITS)
    assert noted(notes, key) is None
    note(notes, key, VIDEO)
    assert noted(notes, key) == noted(ConditioningCache(tmp_path, LIMITS), key) == VIDEO
    assert noted(notes, key_of(name="other")) is None
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"clip_00001_", b"clip_00002_"))
    assert noted(ConditioningCache(tmp_path, LIMITS), key) is None
    notes.put(key, Encoded({}, ("one", "two")), 1.0)
    assert noted(notes, key) is None

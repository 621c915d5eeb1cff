"""What a server says it has made becomes files here: only what can be a file's name counts."""

from pathlib import Path
from typing import Any

import pytest

from i2v_tensorrt.remote.comfyui.messages import ServerFile, made_files

GOOD = {"filename": "clip_00001_.mp4", "subfolder": "video", "type": "output"}


def made(*entries: Any) -> list[ServerFile]:
    return made_files({"7": {"images": list(entries)}})


def test_files_of_the_output_folder_come_before_temporary_ones() -> None:
    temporary = {"filename": "preview.png", "type": "temp"}
    assert made(temporary, GOOD, GOOD) == [ServerFile("clip_00001_.mp4", "video", "output")]
    assert made(temporary) == [ServerFile("preview.png", "", "temp")]


@pytest.mark.parametrize("field", ["filename", "subfolder", "type"])
@pytest.mark.parametrize("value", [5, None, True, ["a"], {"a": 1}, "a\0b", "a\nb", "\ud800"], ids=repr)
def test_what_is_no_name_is_no_file(field: str, value: Any) -> None:
    assert made({**GOOD, field: value}, GOOD) == [ServerFile("clip_00001_.mp4", "video", "output")]


@pytest.mark.parametrize(
    ("name", "suffix"),
    [
        ("clip.mp4", ".mp4"),
        ("a.tar.gz", ".gz"),
        ("clip", ""),
        ("clip.", ""),
        ("clip." + "x" * 300, ""),
        ("clip./../../x", ""),
        ("clip.m p4", ""),
        ("x.mp4/y", ""),
    ],
)
def test_a_suffix_is_short_and_plain(name: str, suffix: str) -> None:
    (file,) = made({**GOOD, "filename": name})
    assert file.suffix == suffix
    assert Path(f"stem{file.suffix}").name == f"stem{suffix}"

"""What users of video nodes reported of saving: names, links, sound, transparency, and clips that were lost."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import core_saves_in, failure, file_names, pictures, run, text
from i2v_tensorrt.tests.live.graphs import Prompt, gradient, node, png, save
from i2v_tensorrt.tests.live.ids import PICTURE, SAVE

FRAMES, SOUND, CLEAR, OPENED, PARTS, PROBE = "10", "11", "12", "13", "14", "15"


def scaled(picture: str, width: int = 64, **inputs: Any) -> Prompt:
    """Three frames of a picture at a width into Save Video."""
    prompt = save(picture, frames=[FRAMES, 0], **inputs)
    prompt["8"] = node("ImageScale", image=[PICTURE, 0], upscale_method="area", width=width, height=64, crop="disabled")
    prompt[FRAMES] = node("RepeatImageBatch", image=["8", 0], amount=3)
    return prompt


def first_line(client: ComfyClient, prompt: Prompt) -> str:
    return text(run(client, prompt), SAVE).splitlines()[0]


def test_a_prefix_of_the_page_and_of_windows_is_understood(client: ComfyClient, picture: str) -> None:
    day = time.strftime("%Y-%m-%d")
    found = first_line(client, save(picture, filename_prefix="video\\%date:yyyy-MM-dd%//./clip/"))
    assert found in (f"video/{day}/clip_00001_.mp4", f"video/{time.strftime('%Y-%m-%d')}/clip_00001_.mp4")


@pytest.fixture
def drive(output: Path, tmp_path: Path) -> Iterator[Path]:
    """A folder that a link in the output folder leads to."""
    output.mkdir(exist_ok=True)
    link = output / "drive"
    link.symlink_to(tmp_path, target_is_directory=True)
    yield tmp_path
    link.unlink()


def test_a_link_out_of_the_output_folder_is_followed_where_comfyui_follows_it(
    client: ComfyClient, picture: str, drive: Path
) -> None:
    follows = core_saves_in(client, picture, "drive/a")
    ours = client.run(save(picture, filename_prefix="drive/b/clip"))
    assert (ours.status == "success") == follows
    assert (drive / "b" / "clip_00001_.mp4").is_file() == follows
    assert follows or "leads out of it" in str(ours.error)


@pytest.mark.parametrize(
    ("sound", "told"),
    [
        ({"samples": 0}, "The sound was left out: it is empty, of shape [1, 1, 0]."),
        ({"channels": 4}, "The sound's 4 channels were mixed into one."),
        ({"dtype": "int16"}, None),
        ({"broken": True}, "The sound was left out: expected a waveform"),
    ],
    ids=str,
)
def test_sound_of_any_kind_loses_no_clip(
    client: ComfyClient, picture: str, output: Path, sound: dict[str, object], told: str | None
) -> None:
    """The core's Save Video takes what comes out of it."""
    prompt = scaled(picture, audio=[SOUND, 0], filename_prefix="sound/odd")
    settings = {"channels": 1, "samples": 8000, "dtype": "float32", "broken": False}
    prompt[SOUND] = node("ProbeSound", **{**settings, **sound})
    prompt["20"] = node("SaveVideo", video=[SAVE, 0], filename_prefix="core", format="auto", codec="auto")
    name, _, *notes = text(run(client, prompt), SAVE).splitlines()
    assert [note for note in notes if told is not None and note.startswith(told)] == notes[: told is not None]
    with av.open(output / name) as video:
        assert sum(1 for _ in video.decode(video=0)) == 3
        assert bool(video.streams.audio) == (told is None or "mixed" in told)


def transparent(picture: str, **inputs: Any) -> Prompt:
    """`scaled`, of which nothing can be seen."""
    prompt = scaled(picture, **inputs)
    prompt["16"] = node("SolidMask", value=1.0, width=64, height=64)
    prompt[CLEAR] = node("JoinImageWithAlpha", image=["8", 0], alpha=["16", 0])
    prompt[FRAMES]["inputs"]["image"] = [CLEAR, 0]  # older nodes join as many frames as there are masks
    return prompt


@pytest.mark.parametrize("key", ["webm-vp9", "mp4-h264"])
def test_transparency_goes_where_it_can_and_the_core_takes_the_video(
    client: ComfyClient, picture: str, output: Path, key: str
) -> None:
    prompt = transparent(picture, format=key, pingpong=True, filename_prefix="clear")
    prompt["20"] = node("SaveVideo", video=[SAVE, 0], filename_prefix="core", format="auto", codec="auto")
    prompt[PARTS] = node("GetVideoComponents", video=[SAVE, 0])
    prompt["21"] = node("PreviewImage", images=[PARTS, 0])
    result = run(client, prompt)
    assert ("over black" in text(result, SAVE)) == (key == "mp4-h264")
    with av.open(output / text(result, SAVE).splitlines()[0]) as video:
        assert (video.streams.video[0].metadata.get("ALPHA_MODE") == "1") == (key == "webm-vp9")
    assert len(pictures(client, result, "21")) == 4
    assert max(high for image in pictures(client, result, "21") for _, high in image.getextrema()) == 0


def test_frames_that_cannot_be_saved_are_kept_and_come_back(client: ComfyClient, picture: str, output: Path) -> None:
    prompt = scaled(picture, width=16, format="webm-av1", filename_prefix="narrow")
    error = failure(client, prompt)
    assert "webm-av1 needs frames at least 32 pixels wide" in error
    name = error.partition("Load Video opens them as ")[2].rstrip(".")
    assert re.fullmatch(r"i2v_kept/frames_\d{5}_\.mkv \[output\]", name)
    after = text(run(client, save(picture, filename_prefix="after/kept")), SAVE).splitlines()
    told = [line for line in after if line.startswith("i2v_kept")]
    assert len(told) == 1 and "remove what you no longer need" in told[0]
    prompt[OPENED] = node("LoadVideo", file=name)
    prompt[PARTS] = node("GetVideoComponents", video=[OPENED, 0])
    prompt[PROBE] = node("ProbeDifference", a=[PARTS, 0], b=[FRAMES, 0])
    del prompt[SAVE]
    found = run(client, prompt).outputs[PROBE]
    assert found["shapes"] == [[3, 64, 16, 3], [3, 64, 16, 3]]
    assert found["difference"][0] < 1.5 / 255  # half a step of 8 bits, and one more that ComfyUI's reader is off by
    assert not list((output / "narrow").glob("*")) and not list(output.glob("narrow*"))


def test_a_prefix_over_a_link_that_leads_out_loses_no_frames(client: ComfyClient, picture: str, output: Path) -> None:
    """It is known only when all has been sampled."""
    prompt = scaled(picture, filename_prefix=["22", 0])
    prompt["22"] = node("PrimitiveString", value="D:\\videos\\clip")
    error = failure(client, prompt)
    assert "A file name has no control characters and none of" in error
    assert "Load Video opens them as i2v_kept/frames_" in error


def odd_names(count: int) -> list[str]:
    """Names of pictures as people and other systems have them, the same in every run."""
    dice = random.Random(22)  # noqa: S311 - no secret
    pieces = [
        " ",
        "ü",
        "图",
        "🎬",
        "'",
        "&",
        "%year%",
        "%",
        "#",
        "+",
        "..",
        "~",
        "$HOME",
        "-rf",
        "[output]",
        "\u202e",
        "e\u0301",
    ]
    return [f"{number}{''.join(dice.choices(pieces, k=dice.randint(1, 6)))}.png" for number in range(count)]


def test_a_hundred_pictures_of_odd_names_become_clips(client: ComfyClient, base_directory: Path) -> None:
    """In one prompt; what lies beside the server's folder stays as it is."""
    outside = file_names(base_directory.parent) - {path for path in file_names(base_directory.parent) if "/" in path}
    prompt: Prompt = {}
    for number, name in enumerate(odd_names(100)):
        stored = client.upload_image(png(gradient(blue=number)), name)
        prompt[f"p{number}"] = node("LoadImage", image=stored)
        prefix = f"names/{stored.removesuffix('.png').replace('%', '_')}"
        prompt[f"s{number}"] = save("", frames=[f"p{number}", 0], filename_prefix=prefix, format="webp")[SAVE]
    result = run(client, prompt)
    assert len({text(result, f"s{number}").splitlines()[0] for number in range(100)}) == 100
    assert {path for path in file_names(base_directory.parent) if "/" not in path} == outside


def test_a_quality_beyond_the_formats_scale_is_its_last(client: ComfyClient, picture: str) -> None:
    assert "crf 60 was taken as 51, the greatest of mp4-h264." in text(run(client, save(picture, crf=60)), SAVE)

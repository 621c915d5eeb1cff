"""Pictures, prompts and places that only a run can judge: served where they can be, else refused in a sentence."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.server import ComfyHost, start_server
from i2v_tensorrt.tests.live.graphs import (
    CONDITIONING,
    DECODE,
    LOADER,
    PICTURE,
    SAMPLER,
    SAVE,
    Prompt,
    clip,
    encoding,
    file_names,
    gradient,
    node,
    png,
    save,
    text,
)

FILE_LIMIT_BLOCKS = 256
"""The longest file that the server with a full disk can write, in blocks of 512 bytes."""


def refused(client: ComfyClient, prompt: Prompt, name: str) -> str:
    """The sentence with which the node ends the run."""
    result = client.run(prompt)
    assert result.status == "error"
    expected = rf"node {name} \(I2VTRT_\w+\) failed with i2v_tensorrt\.(Input|Storage|Checkpoint)Error: (.*\.)"
    found = re.fullmatch(expected, result.error or "")
    assert found, result.error
    return found[2]


def ended(result: RunResult) -> tuple[str, str | None]:
    return result.status, result.error


def sixteen_bit() -> Image.Image:
    """Grey of 16 bits."""
    return Image.fromarray(np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24))


PICTURES = {
    "RGBA": gradient().convert("RGBA"),
    "grey": gradient().convert("L"),
    "grey and alpha": gradient().convert("LA"),
    "palette": gradient().quantize(16),
    "1x1": gradient(1, 1),
    "1x400": gradient(1, 400),
    "16 bits": sixteen_bit(),
    "one bit": gradient().convert("1"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_any_kind_runs(client: ComfyClient, kind: str) -> None:
    name = client.upload_image(png(PICTURES[kind]), f"{kind}.png")
    assert ended(client.run(clip(name))) == ("success", None)


def test_a_picture_with_an_alpha_channel_runs(client: ComfyClient, picture: str) -> None:
    prompt = encoding(picture, {CONDITIONING: {"image": ["20", 0]}})
    prompt["20"] = node("JoinImageWithAlpha", image=[PICTURE, 0], alpha=[PICTURE, 1])
    assert ended(client.run(prompt)) == ("success", None)


def test_a_batch_of_pictures_is_refused(client: ComfyClient, picture: str) -> None:
    prompt = encoding(picture, {CONDITIONING: {"image": ["20", 0]}})
    prompt["20"] = node("RepeatImageBatch", image=[PICTURE, 0], amount=3)
    told = refused(client, prompt, CONDITIONING)
    assert told == "Expected one picture, found a batch of 3: choose one of them first."


PROMPTS = {
    "empty": "",
    "10,000 characters": "a boat and " * 909 + "x",
    "emoji": "🚣🏽‍♀️ на озере 船",
    "controls": "a\0b\x1b[31m\tc\r\nd\x7f\u202e",
    "special tokens": "<|endoftext|> <|startoftext|> %s {0} </w>",
}


@pytest.mark.parametrize("kind", PROMPTS)
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_any_text_runs(client: ComfyClient, picture: str, kind: str, field: str) -> None:
    result = client.run(clip(picture, {CONDITIONING: {field: PROMPTS[kind]}}))
    assert ended(result) == ("success", None)
    assert ("only the first 77 count" in text(result, CONDITIONING)) == (kind == "10,000 characters")


def test_half_a_character_is_refused(client: ComfyClient, picture: str) -> None:
    told = refused(client, encoding(picture, {CONDITIONING: {"prompt": "a \ud83d boat"}}), CONDITIONING)
    assert told == "The prompt is valid Unicode, found '\\ud83d' at character 3."


@pytest.mark.parametrize(
    ("latents", "told"),
    [
        (node("EmptySD3LatentImage", width=64, height=64, batch_size=1), "[1, 16, 8, 8]"),
        (node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1), "[1, 16, 1, 8, 8]"),
    ],
    ids=["channels", "rank"],
)
def test_latents_of_another_family_are_refused(
    client: ComfyClient, picture: str, latents: dict[str, Any], told: str
) -> None:
    prompt = clip(picture, {DECODE: {"latents": ["20", 0]}})
    prompt["20"] = latents
    assert refused(client, prompt, DECODE).startswith("Expected latents as [frames, ")
    assert told in refused(client, prompt, DECODE)


@pytest.mark.parametrize(
    ("name", "field", "value", "told"),
    [
        (CONDITIONING, "image", "x\ny", r"found 'x\ny'."),
        (SAMPLER, "conditioning", {"a": 1}, "found a dict."),
        (DECODE, "latents", {"samples": "x"}, "found str."),
        (SAVE, "audio", {"waveform": [1]}, "found another kind."),
    ],
)
def test_a_value_in_the_place_of_a_link_is_refused(
    client: ComfyClient, picture: str, name: str, field: str, value: object, told: str
) -> None:
    """ComfyUI checks what is linked to a socket, and lets anything else pass."""
    prompt = clip(picture)
    prompt[name]["inputs"][field] = value
    assert refused(client, prompt, name).endswith(told)


def test_a_size_over_a_link_is_checked_when_it_is_known(client: ComfyClient, picture: str) -> None:
    prompt = encoding(picture, {CONDITIONING: {"width": ["20", 0]}})
    prompt["20"] = node("PrimitiveInt", value=65)
    assert refused(client, prompt, CONDITIONING) == "Width is a multiple of 8, found 65: the nearest is 64."


def test_a_name_over_a_link_is_checked_when_it_is_known(client: ComfyClient, picture: str, output: Path) -> None:
    before = file_names(output.parent)
    prompt = save(picture, filename_prefix=["20", 0])
    prompt["20"] = node("PrimitiveString", value="../../escaped")
    assert "found '..' in '../../escaped'" in refused(client, prompt, SAVE)
    assert file_names(output.parent) == before


def test_a_link_out_of_the_output_folder_is_not_followed(
    client: ComfyClient, picture: str, output: Path, tmp_path: Path
) -> None:
    (output / "leads-out").symlink_to(tmp_path, target_is_directory=True)
    for prefix in ("leads-out/clip", "leads-out/new/clip"):
        assert "which leads out of it." in refused(client, save(picture, filename_prefix=prefix), SAVE)
    assert file_names(tmp_path) == set()


@pytest.mark.parametrize("prefix", ["a-file/clip", "a-file/below/clip"], ids=["file", "below a file"])
def test_a_place_that_cannot_be_made_is_told(client: ComfyClient, picture: str, output: Path, prefix: str) -> None:
    (output / "a-file").write_bytes(b"")
    assert "could not be" in refused(client, save(picture, filename_prefix=prefix), SAVE)


def test_a_damaged_checkpoint_is_named(client: ComfyClient, picture: str, base_directory: Path) -> None:
    folder = base_directory / "models" / "i2v" / "damaged"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    told = refused(client, encoding(picture, {LOADER: {"checkpoint": "damaged"}}), LOADER)
    assert "damaged/model_index.json" in told


def test_another_frame_size_than_the_files_limit_is_told(client: ComfyClient, picture: str) -> None:
    prompt = save(picture, frames=["20", 0], format="webp")
    prompt["20"] = node("EmptyImage", width=16384, height=8, batch_size=1, color=0)
    assert "webp holds at most 16383 pixels a side" in refused(client, prompt, SAVE)


def test_a_good_prompt_still_runs(client: ComfyClient, picture: str) -> None:
    assert ended(client.run(clip(picture, {SAMPLER: {"seed": 77}}))) == ("success", None)


@pytest.fixture(scope="module")
def full_disk(
    host: ComfyHost, base_directory: Path, server_arguments: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ComfyClient]:
    """A server that can write short files only, as on a disk that is filling up."""
    if os.name != "posix":
        pytest.skip("a process can be kept from writing long files on POSIX alone")
    folder = tmp_path_factory.mktemp("full")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nulimit -f {FILE_LIMIT_BLOCKS}\nexec "{host.python}" "$@"\n')
    python.chmod(python.stat().st_mode | stat.S_IXUSR)
    limited = ComfyHost(host.directory, python)
    with start_server(limited, base_directory, server_arguments, folder / "comfyui.log") as server:
        yield ComfyClient(server.url)


@pytest.mark.parametrize("key", ["mkv-ffv1", "webp", "gif", "mp4-h264"])
def test_a_full_disk_leaves_nothing_half_written(
    full_disk: ComfyClient, client: ComfyClient, picture: str, output: Path, key: str
) -> None:
    noise = client.upload_image(noisy(512), "noise.png")
    before = file_names(output)
    prompt = save(noise, frames=["20", 0], format=key, crf=0 if key != "gif" else -1, filename_prefix="full")
    prompt["20"] = node("RepeatImageBatch", image=[PICTURE, 0], amount=3)
    told = refused(full_disk, prompt, SAVE)
    assert "could not be written: File too large." in told
    assert file_names(output) == before
    assert ended(full_disk.run(save(picture, format=key))) == ("success", None)


def noisy(side: int) -> bytes:
    """A picture that no format makes small, as PNG."""
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    return png(Image.fromarray(pixels))

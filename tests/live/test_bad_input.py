"""Pictures, prompts and places that only a run can judge: served where they can be, else refused in a sentence."""

import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost, start_server
from i2v_tensorrt.tests.live.answers import core_saves_in, failure, file_names, run, text
from i2v_tensorrt.tests.live.graphs import Prompt, clip, encoding, gradient, node, png, save
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, LOADER, PICTURE, SAMPLER, SAVE

FILE_LIMIT_BLOCKS = 256
"""The longest file that the server with a full disk can write, in blocks of 512 bytes."""
BESIDE = "20"


def refusal(client: ComfyClient, prompt: Prompt, name: str) -> str:
    """The sentence with which the node ends the run."""
    expected = rf"node {name} \(I2VTRT_\w+\) failed with i2v_tensorrt\.(Input|Storage|Checkpoint)Error: (.*\.)"
    error = failure(client, prompt)
    found = re.fullmatch(expected, error)
    assert found, error
    return found[2]


PICTURES = {
    "RGBA": gradient().convert("RGBA"),
    "grey": gradient().convert("L"),
    "grey and alpha": gradient().convert("LA"),
    "palette": gradient().quantize(16),
    "1x1": gradient(1, 1),
    "1x400": gradient(1, 400),
    "16 bits": Image.fromarray(np.linspace(0, 65535, 24 * 16).astype(np.uint16).reshape(16, 24)),
    "one bit": gradient().convert("1"),
}


@pytest.mark.parametrize("kind", PICTURES)
def test_a_picture_of_any_kind_runs(client: ComfyClient, kind: str) -> None:
    run(client, clip(client.upload_image(png(PICTURES[kind]), f"{kind}.png")))


def test_a_picture_with_an_alpha_channel_runs(client: ComfyClient, picture: str) -> None:
    prompt = encoding(picture, {CONDITIONING: {"image": [BESIDE, 0]}})
    run(client, prompt | {BESIDE: node("JoinImageWithAlpha", image=[PICTURE, 0], alpha=[PICTURE, 1])})


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
    result = run(client, clip(picture, {CONDITIONING: {field: PROMPTS[kind]}}))
    assert ("only the first 77 count" in text(result, CONDITIONING)) == (kind == "10,000 characters")


IN_A_RUN = [
    (
        {"image": [BESIDE, 0]},
        node("RepeatImageBatch", image=[PICTURE, 0], amount=3),
        "Expected one picture, found a batch of 3: choose one of them first.",
    ),
    ({"prompt": "a \ud83d boat"}, None, "The prompt is valid Unicode, found '\\ud83d' at character 3."),
    (
        {"width": [BESIDE, 0]},
        node("PrimitiveInt", value=65),
        "Width is a multiple of 8, found 65: the nearest is 64.",
    ),
]


@pytest.mark.parametrize(("inputs", "beside", "told"), IN_A_RUN, ids=["batch", "half a character", "size over a link"])
def test_what_only_a_run_can_judge_is_refused(
    client: ComfyClient, picture: str, inputs: dict[str, Any], beside: dict[str, Any] | None, told: str
) -> None:
    prompt = encoding(picture, {CONDITIONING: inputs}) | ({} if beside is None else {BESIDE: beside})
    assert refusal(client, prompt, CONDITIONING) == told


OTHER_LATENTS = {
    "[1, 16, 8, 8]": node("EmptySD3LatentImage", width=64, height=64, batch_size=1),
    "[1, 16, 1, 8, 8]": node("EmptyHunyuanLatentVideo", width=64, height=64, length=1, batch_size=1),
}


@pytest.mark.parametrize("shape", OTHER_LATENTS)
def test_latents_of_another_family_are_refused(client: ComfyClient, picture: str, shape: str) -> None:
    prompt = clip(picture, {DECODE: {"latents": [BESIDE, 0]}}) | {BESIDE: OTHER_LATENTS[shape]}
    told = refusal(client, prompt, DECODE)
    assert told.startswith("Expected latents as [frames, ") and shape in told


@pytest.mark.parametrize(
    ("name", "field", "value", "told"),
    [
        (CONDITIONING, "image", "x\ny", r"found 'x\ny'."),
        (SAMPLER, "conditioning", {"a": 1}, "found a dict."),
        (DECODE, "latents", {"samples": "x"}, "found str."),
        (SAVE, "audio", [[1]], "found a list."),
    ],
)
def test_a_value_in_the_place_of_a_link_is_refused(
    client: ComfyClient, picture: str, name: str, field: str, value: object, told: str
) -> None:
    """ComfyUI checks what is linked to a socket, and lets anything else pass."""
    prompt = clip(picture)
    prompt[name]["inputs"][field] = {"__value__": value}
    assert refusal(client, prompt, name).endswith(told)


def test_a_name_over_a_link_is_checked_when_it_is_known(client: ComfyClient, picture: str, output: Path) -> None:
    before = file_names(output.parent)
    prompt = save(picture, filename_prefix=[BESIDE, 0]) | {BESIDE: node("PrimitiveString", value="../../escaped")}
    assert "found '..' in '../../escaped'" in refusal(client, prompt, SAVE)
    new = file_names(output.parent) - before - {"output"}  # which a new server has not made before
    assert new and all(name.startswith("output/i2v_kept") for name in new), "the frames are kept, and nothing else"


def test_a_place_outside_or_that_cannot_be_made_is_told(
    client: ComfyClient, picture: str, output: Path, tmp_path: Path
) -> None:
    output.mkdir(exist_ok=True)
    (output / "leads-out").symlink_to(tmp_path, target_is_directory=True)
    (output / "a-file").write_bytes(b"")
    places = [("a-file/", "could not be")]
    if core_saves_in(client, picture, "leads-out/core"):
        (output / "leads-out").unlink()
        shutil.rmtree(tmp_path / "core")
    else:
        places.append(("leads-out/", "which leads out of it."))
    for prefix, told in places:
        for below in ("clip", "new/clip"):
            assert told in refusal(client, save(picture, filename_prefix=prefix + below), SAVE)
    assert file_names(tmp_path) == set()


def test_a_damaged_checkpoint_is_named(client: ComfyClient, picture: str, base_directory: Path) -> None:
    folder = base_directory / "models" / "i2v" / "damaged"
    folder.mkdir()
    (folder / "model_index.json").write_text("{}")
    told = refusal(client, encoding(picture, {LOADER: {"checkpoint": "damaged"}}), LOADER)
    assert "damaged/model_index.json" in told


def test_another_frame_size_than_the_files_limit_is_told(client: ComfyClient, picture: str) -> None:
    wide = node("EmptyImage", width=16384, height=8, batch_size=1, color=0)
    prompt = save(picture, frames=[BESIDE, 0], format="webp") | {BESIDE: wide}
    assert "webp holds at most 16383 pixels a side" in refusal(client, prompt, SAVE)


def test_a_good_prompt_still_runs(client: ComfyClient, picture: str) -> None:
    run(client, clip(picture, {SAMPLER: {"seed": 77}}))


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
    # No format makes it small.
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8))
    name = client.upload_image(png(noise), "noise.png")
    before = file_names(output)
    prompt = save(name, frames=[BESIDE, 0], format=key, crf=0 if key != "gif" else -1, filename_prefix="full")
    prompt[BESIDE] = node("RepeatImageBatch", image=[PICTURE, 0], amount=3)
    assert "could not be written: File too large." in refusal(full_disk, prompt, SAVE)
    assert file_names(output) == before
    run(full_disk, save(picture, format=key))

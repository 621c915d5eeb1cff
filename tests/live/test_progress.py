"""What a user sees while a clip is made: three stages on three nodes, previews, and an end on request."""

import io
import itertools
import json
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.tests.live.answers import file_names, interrupt_at, run
from i2v_tensorrt.tests.live.graphs import builder, clip, node, only, save
from i2v_tensorrt.tests.live.ids import BUILDER, CHECKPOINT, CONDITIONING, DECODE, LOADER, PICTURE, SAMPLER, SAVE
from i2v_tensorrt.tests.live.texts import interrupt_on, run_and_hear


@pytest.fixture(scope="module")
def watched(client: ComfyClient, picture: str) -> RunResult:
    """A clip of four frames in five steps, decoded one frame at a time."""
    prompt = clip(
        picture,
        {CONDITIONING: {"prompt": "watched"}, SAMPLER: {"steps": 5}, DECODE: {"chunk": 1}, SAVE: {"pingpong": True}},
    )
    return run(client, prompt)


def test_the_stages_follow_each_other_and_count_to_their_ends(watched: RunResult) -> None:
    order = [event.data["node"] for event in watched.of_kind("progress")]
    assert [name for name, _ in itertools.groupby(order)] == [CONDITIONING, SAMPLER, DECODE, SAVE]
    assert watched.progress[SAMPLER] == [(step, 5) for step in range(1, 6)]
    for name, total in ((CONDITIONING, 4), (DECODE, 4), (SAVE, 6)):  # pingpong plays six
        values = [value for value, _ in watched.progress[name]]
        assert {maximum for _, maximum in watched.progress[name]} == {total}
        # ComfyUI leaves out what comes sooner than 0.1 s after the last, except the first and the end.
        assert values[0] < values[-1] == total
        assert values == sorted(values)


def test_previews_of_the_sampler_show_four_frames_on_one_sheet(watched: RunResult) -> None:
    assert [(preview.node_id, preview.media_type) for preview in watched.previews] == [(SAMPLER, "image/jpeg")] * 5
    previews = [Image.open(io.BytesIO(preview.image)) for preview in watched.previews]
    assert all(image.width == image.height for image in previews)  # two rows of two square frames
    assert all(image.entropy() > 4 for image in previews)  # bits a pixel: not one colour
    assert previews[0].tobytes() != previews[-1].tobytes()
    # The page is told how the sheet is divided.
    (event,) = watched.of_kind("i2v_tensorrt.sheet")
    told = {"prompt_id": watched.prompt_id, "node": SAMPLER, "columns": 2, "rows": 2, "frames": 4, "seconds": 4 / 8}
    assert event.data == {**told, "workflow": None}, "a program sends none along"


def test_each_stage_says_its_name_on_its_node(client: ComfyClient, picture: str) -> None:
    _, heard = run_and_hear(client, clip(picture, {CONDITIONING: {"prompt": "its name"}, DECODE: {"chunk": 2}}))
    assert set(heard[CONDITIONING]) >= {"encode: text", "encode: picture", "encode: latents"}
    assert heard[SAMPLER][:3] == ["denoise: loading", "denoise: step 1 of 2", "denoise: step 2 of 2"]
    assert set(heard[DECODE]) >= {"decode: frame 2 of 4", "decode: frame 4 of 4"}


def test_in_a_loop_the_node_that_the_page_shows_is_told(client: ComfyClient, picture: str) -> None:
    """The id of a copy stands in no workflow: lines and sheets for it would be lost."""
    again = "20"
    prompt = clip(picture, {CONDITIONING: {"prompt": "in a loop"}, DECODE: {"latents": [again, 0]}})
    prompt[again] = node("ProbeAgain", of=[SAMPLER, 0])
    result, heard = run_and_hear(client, prompt)
    assert (result.status, result.error) == ("success", None)
    assert set(heard) <= set(prompt)
    assert [line.partition(" in ")[0] for line in heard[SAMPLER]].count("denoised") == 2, "itself, and its copy"
    assert [event.data["node"] for event in result.of_kind("i2v_tensorrt.sheet")] == [SAMPLER] * 2


TRIES = range(3)
"""On a busy machine the request itself may come late, but not three times."""


def test_an_interrupt_while_sampling_takes_effect_within_a_step(
    client: ComfyClient, picture: str, output: Path
) -> None:
    assert any(stops_while_sampling(client, picture, output, seed) for seed in TRIES)
    run(client, clip(picture, {CONDITIONING: {"prompt": "after an interrupt"}}))


def stops_while_sampling(client: ComfyClient, picture: str, output: Path, seed: int) -> bool:
    """Interrupts a clip after its second step; a step takes far longer than the request."""
    large = {CONDITIONING: {"width": 384, "height": 384, "num_frames": 8}, SAMPLER: {"steps": 100, "seed": seed}}
    before = file_names(output)
    result = client.run(clip(picture, large), interrupt_at(client, SAMPLER, 2))
    if result.error != f"node {SAMPLER} (I2VTRT_DDIMSampler) was interrupted":
        return False
    assert result.status == "interrupted"
    assert file_names(output) == before
    return result.progress[SAMPLER][-1][0] <= 3


def test_an_interrupt_while_saving_leaves_no_file(client: ComfyClient, picture: str, output: Path) -> None:
    assert any(leaves_no_file(client, picture, output, number) for number in TRIES)


def leaves_no_file(client: ComfyClient, picture: str, output: Path, number: int) -> bool:
    """Interrupts the writing of 64 large frames after the second, if the request comes in time."""
    before, prefix = file_names(output), f"interrupted{number}"
    prompt = save(picture, frames=["3", 0], filename_prefix=prefix, format="mkv-ffv1", pingpong=True) | {
        "2": node("ImageScale", image=[PICTURE, 0], upscale_method="area", width=1024, height=1024, crop="disabled"),
        "3": node("RepeatImageBatch", image=["2", 0], amount=64),
    }
    result = client.run(prompt, interrupt_at(client, SAVE, 2))
    done, total = result.progress[SAVE][-1]
    if result.status != "interrupted" or done >= total:  # the file was whole already
        return False
    assert file_names(output) == before
    return True


@pytest.mark.usefixtures("builder_backend")
@pytest.mark.parametrize("percent", [0, pytest.param(80, marks=pytest.mark.slow)], ids=["start", "check"])
def test_an_interrupt_while_building_leaves_no_engine(
    client: ComfyClient, picture: str, base_directory: Path, percent: int
) -> None:
    def engines() -> set[str]:
        """Engines, and what is left of those that were begun."""
        names = file_names(base_directory / "models" / "i2v_engines")
        return {name for name in names if not name.startswith((".locks", ".logs", ".secret"))}

    before = engines() | {".staging"}
    prompt = only(clip(picture), LOADER) | {BUILDER: builder(force=True)}
    result = client.run(prompt, interrupt_at(client, BUILDER, percent))
    assert (result.status, result.error) == ("interrupted", f"node {BUILDER} (I2VTRT_EngineBuilder) was interrupted")
    assert result.progress[BUILDER][-1][0] < 95  # published
    assert engines() == before


HUGE_BYTES = 6 << 30
"""Seconds of reading, of which the disk holds nothing."""


@pytest.fixture
def huge(base_directory: Path) -> Iterator[str]:
    """The name of a checkpoint whose largest file is of that size."""
    models = base_directory / "models" / "i2v"
    folder = shutil.copytree(models / CHECKPOINT, models / "huge")
    (weights,) = (folder / "unet").glob("*.safetensors")
    header = json.dumps({"a": {"dtype": "U8", "shape": [HUGE_BYTES], "data_offsets": [0, HUGE_BYTES]}}).encode()
    with weights.open("wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + HUGE_BYTES)
    yield folder.name
    shutil.rmtree(folder)


def test_a_long_reading_of_weights_is_shown_and_can_be_interrupted(client: ComfyClient, huge: str) -> None:
    prompt = only({LOADER: node("I2VTRT_ModelLoader", checkpoint=huge, precision="auto")}, LOADER)
    result, heard = run_and_hear(client, prompt, interrupt_on(client, LOADER, ""))
    assert (result.status, result.error) == ("interrupted", f"node {LOADER} (I2VTRT_ModelLoader) was interrupted")
    assert re.fullmatch(r"reading checkpoint \d\d?%", heard[LOADER][0])


def test_what_was_read_is_remembered_by_later_servers(watched: RunResult, base_directory: Path) -> None:
    table = json.loads((base_directory / "user" / "__i2v_tensorrt" / "digests.json").read_text("utf-8"))
    assert len(table) >= len(list((base_directory / "models" / "i2v" / CHECKPOINT).glob("*/")))

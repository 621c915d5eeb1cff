"""DynamiCrafter through the shipped workflows: a picture, two pictures, a loop; and what the nodes say."""

import pytest
import torch

from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import failure, frames, lines, movie, run, text
from i2v_tensorrt.tests.live.graphs import LOSSLESS, Changes, Prompt, changed, gradient, node, png, published
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, DYNAMICRAFTERS, ENGINES, LOADER, PICTURE, SAMPLER

LAST = "9"
WORKFLOWS = {
    workflow_names.DYNAMICRAFTER: ("1024", 16),
    workflow_names.DYNAMICRAFTER_BETWEEN: ("interp", 16),
    workflow_names.DYNAMICRAFTER_LOOP: ("interp", 15),
}
"""The checkpoint's kind and the number of frames, by the shipped workflow."""
LOOP = "No last_picture: the clip ends in its first one, as a loop does."
TWO = workflow_names.DYNAMICRAFTER_BETWEEN


def small(name: str, picture: str, *changes: Changes) -> Prompt:
    """The shipped workflow, small, lossless and in eager PyTorch."""
    settings = {
        PICTURE: {"image": picture},
        LOADER: {"checkpoint": DYNAMICRAFTERS[WORKFLOWS[name][0]]},
        ENGINES: {"precision": "auto", "backend": "eager"},
        CONDITIONING: {"width": 64, "height": 64},
        SAMPLER: {"steps": 2},
    }
    return changed(published(name), settings, LOSSLESS, *changes)


@pytest.fixture
def other(client: ComfyClient) -> str:
    """A second picture."""
    return client.upload_image(png(gradient(blue=200)), "last.png")


@pytest.mark.parametrize("name", WORKFLOWS)
def test_the_shipped_workflow_makes_a_video(client: ComfyClient, picture: str, other: str, name: str) -> None:
    change: Changes = {LAST: {"image": other}} if name == TWO else {}
    result = run(client, small(name, picture, change))
    clip = frames(client, result)
    assert tuple(clip.shape) == (WORKFLOWS[name][1], 64, 64, 3) and clip.float().std() > 1
    assert not torch.equal(movie(client, small(name, picture, change, {SAMPLER: {"seed": 2}})), clip)


def test_the_loader_says_how_it_was_published(client: ComfyClient, picture: str) -> None:
    precision = {"precision": "fp32"}  # of no other test's: a node that ComfyUI knows the answer of says nothing
    result = run(client, small(workflow_names.DYNAMICRAFTER, picture, {LOADER: precision}))
    family, *hints = text(result, LOADER).splitlines()
    assert family.startswith("dynamicrafter, fp32") and "published with ddim, 50 steps, eta 1" in hints[0]


@pytest.mark.parametrize(
    "change", [{CONDITIONING: {"fps": 15}}, {SAMPLER: {"eta": 0.0}}, {CONDITIONING: {"prompt": "a storm"}}], ids=str
)
def test_every_input_counts(client: ComfyClient, picture: str, change: Changes) -> None:
    name = workflow_names.DYNAMICRAFTER
    assert not torch.equal(movie(client, small(name, picture, change)), movie(client, small(name, picture)))


def test_the_last_picture_counts_and_left_out_it_is_a_loop(client: ComfyClient, picture: str, other: str) -> None:
    two = movie(client, small(TWO, picture, {LAST: {"image": other}}))
    left_out = small(TWO, picture, {CONDITIONING: {"last_picture": None}, SAMPLER: {"seed": 5}})
    del left_out[LAST]
    result = run(client, left_out)
    assert LOOP in lines(result, CONDITIONING)
    assert not torch.equal(frames(client, result), two)


def test_a_last_picture_that_is_of_no_use_is_told(client: ComfyClient, picture: str) -> None:
    prompt = small(TWO, picture, {LOADER: {"checkpoint": DYNAMICRAFTERS["1024"]}, SAMPLER: {"seed": 6}})
    assert any("last_picture is not used" in line for line in lines(run(client, prompt), CONDITIONING))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {CONDITIONING: {"num_frames": 12}},
            "DynamiCrafter makes exactly 16 frames, found 12: the nearest is 16.",
        ),
        (
            {CONDITIONING: {"width": 96}},
            "Width is a multiple of 64 for DynamiCrafter, found 96: the nearest is 128.",
        ),
        ({SAMPLER: {"scheduler": "euler"}}, "DynamiCrafter is sampled by the scheduler ddim, found euler."),
    ],
    ids=str,
)
def test_what_it_cannot_make_is_refused_in_a_sentence(
    client: ComfyClient, picture: str, changes: Changes, sentence: str
) -> None:
    assert sentence in failure(client, small(workflow_names.DYNAMICRAFTER, picture, changes))


def drawn(picture: str, last: str, *changes: Changes) -> Prompt:
    """The shipped workflow between two pictures by ToonCrafter."""
    return small(TWO, picture, {LAST: {"image": last}, LOADER: {"checkpoint": DYNAMICRAFTERS["tooncrafter"]}}, *changes)


def test_tooncrafters_decoder_sees_the_pictures_of_its_clip(client: ComfyClient, picture: str, other: str) -> None:
    """The core's own nodes for latents hand on what it sees: twice as large and half of it are the latents again."""
    clip = movie(client, drawn(picture, other))
    assert tuple(clip.shape) == (16, 64, 64, 3) and clip.float().std() > 1
    assert not torch.equal(movie(client, drawn(picture, picture)), clip)
    through = drawn(picture, other, {DECODE: {"latents": ["31", 0]}}) | {
        "30": node("LatentMultiply", samples=[SAMPLER, 0], multiplier=2.0),
        "31": node("LatentMultiply", samples=["30", 0], multiplier=0.5),
    }
    assert torch.equal(movie(client, through), clip)


def test_latents_without_the_pictures_are_refused_in_a_sentence(client: ComfyClient, picture: str, other: str) -> None:
    foreign = drawn(picture, other, {DECODE: {"latents": ["30", 0]}}) | {
        "30": node("EmptyLatentImage", width=64, height=64, batch_size=16)
    }
    assert "ToonCrafter's decoder sees the clip's first and last picture, which these latents do not carry" in failure(
        client, foreign
    )

"""Stable Video Diffusion through the same nodes: the shipped workflow, small, and what the nodes say."""

from typing import Any

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.device import Device, assert_alike
from i2v_tensorrt.tests.live.graphs import (
    CONDITIONING,
    DECODE,
    ENGINES,
    LOADER,
    PICTURE,
    SAMPLER,
    SAVE,
    SVD,
    Prompt,
    changed,
    frames,
    gradient,
    png,
    published,
    text,
)

SMALL = {
    LOADER: {"checkpoint": SVD},
    CONDITIONING: {"width": 64, "height": 64, "num_frames": 4},
    SAMPLER: {"steps": 2},
    ENGINES: {"on_missing": "build"},
}
NO_TEXT = "Stable Video Diffusion has no text encoder: the prompts are not used."


def whole(picture: str) -> Prompt:
    """The shipped workflow, small, that builds its engines on any device."""
    return changed(published("svd_image_to_video"), SMALL, {PICTURE: {"image": picture}})


def eager(picture: str, *changes: dict[str, dict[str, Any]]) -> Prompt:
    prompt = whole(picture)
    del prompt[ENGINES]
    return changed(prompt, {name: {"model": [LOADER, 0]} for name in (CONDITIONING, SAMPLER, DECODE)}, *changes)


@pytest.fixture(scope="module")
def fresh_picture(client: ComfyClient) -> str:
    return client.upload_image(png(gradient(blue=55)), "svd.png")


@pytest.mark.slow
def test_the_shipped_workflow_builds_its_engines_and_makes_a_video(
    client: ComfyClient, fresh_picture: str, device: Device
) -> None:
    """Engines make the clip that eager PyTorch makes."""
    result = client.run(whole(fresh_picture))
    clip = frames(client, result)
    assert tuple(clip.shape) == (4, 64, 64, 3) and clip.float().std() > 1
    family, *hints = text(result, LOADER).splitlines()
    assert family == f"svd, {device.here}" and NO_TEXT in hints
    assert "engines: 0 of 4" in text(result, ENGINES)
    assert "built in" in text(result, CONDITIONING)
    assert not any("eager" in text(result, name) for name in (CONDITIONING, SAMPLER, DECODE))
    lossless = {SAVE: {"format": "mkv-ffv1"}}
    one = frames(client, client.run(changed(whole(fresh_picture), lossless)))
    other = frames(client, client.run(eager(fresh_picture, lossless)))
    assert_alike(one, other, device, 1)


def test_every_input_of_its_own_counts(client: ComfyClient, picture: str) -> None:
    lossless = {SAVE: {"format": "mkv-ffv1"}}
    base = frames(client, client.run(eager(picture, lossless)))
    for change in (
        {CONDITIONING: {"motion_bucket_id": 255}},
        {CONDITIONING: {"noise_aug_strength": 1.0}},
        {CONDITIONING: {"noise_aug_strength": 1.0, "noise_aug_seed": 3}},
        {CONDITIONING: {"fps": 30}},
        {SAMPLER: {"min_guidance_scale": 3.0}},
        {DECODE: {"chunk": 1}},
    ):
        assert not torch.equal(frames(client, client.run(eager(picture, lossless, change))), base), change


def test_what_is_left_out_is_the_published_default(client: ComfyClient, picture: str) -> None:
    client.run(eager(picture))
    names = ("motion_bucket_id", "noise_aug_strength", "noise_aug_seed")
    left_out: dict[str, Any] = dict.fromkeys(names)
    result = client.run(eager(picture, {CONDITIONING: left_out}, {SAMPLER: {"min_guidance_scale": None, "seed": 9}}))
    assert result.error is None
    assert text(result, CONDITIONING).startswith("cache hit")


def test_a_prompt_is_not_ignored_in_silence(client: ComfyClient, picture: str) -> None:
    client.run(eager(picture))
    result = client.run(eager(picture, {CONDITIONING: {"prompt": "a boat"}}))
    assert result.error is None
    assert text(result, CONDITIONING).splitlines()[1:] == [NO_TEXT]


def test_a_scheduler_of_another_family_is_refused_in_a_sentence(client: ComfyClient, picture: str) -> None:
    result = client.run(eager(picture, {SAMPLER: {"scheduler": "ddim"}}))
    assert result.status == "error"
    assert result.error is not None
    assert "Stable Video Diffusion is sampled by the scheduler euler, found ddim." in result.error


def test_a_clip_decoded_in_parts_is_told(client: ComfyClient, picture: str) -> None:
    parts = "Decoded in 2 parts, between which colours may jump: try a chunk of 4."
    result = client.run(eager(picture, {DECODE: {"chunk": 2}}))
    assert result.error is None
    assert parts in text(result, DECODE)
    assert "parts" not in text(client.run(eager(picture, {DECODE: {"chunk": 4}})), DECODE)


def test_motion_asked_of_i2vgen_xl_is_told_to_be_of_no_use(client: ComfyClient, picture: str) -> None:
    told = changed(
        eager(picture),
        {LOADER: {"checkpoint": "tiny-random"}},
        {CONDITIONING: {"motion_bucket_id": 200, "prompt": "a boat"}},
        {SAMPLER: {"scheduler": "ddim", "min_guidance_scale": -1.0}},
    )
    result = client.run(told)
    assert result.error is None
    assert "I2VGen-XL is told to move by its prompt: motion bucket" in text(result, CONDITIONING)

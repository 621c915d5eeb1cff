"""Wan through the same nodes: the shipped workflows, small, with latents that the core's nodes take for videos."""

from typing import Any

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.device import Device, assert_alike, lines
from i2v_tensorrt.tests.live.graphs import (
    CONDITIONING,
    DECODE,
    ENGINES,
    LOADER,
    PICTURE,
    SAMPLER,
    SAVE,
    WANS,
    Prompt,
    changed,
    frames,
    node,
    published,
    text,
)

WORKFLOWS = {"wan21": "wan21_image_to_video", "a14b": "wan22_image_to_video", "ti2v": "wan22_ti2v_image_to_video"}
LOSSLESS = {SAVE: {"format": "mkv-ffv1"}}
each_kind = pytest.mark.parametrize("kind", WORKFLOWS)


def small(kind: str, picture: str, *changes: dict[str, dict[str, Any]]) -> Prompt:
    settings = {
        PICTURE: {"image": picture},
        LOADER: {"checkpoint": WANS[kind]},
        ENGINES: {"precision": "auto", "backend": "eager"},
        CONDITIONING: {"width": 64, "height": 64, "num_frames": 5},
        SAMPLER: {"steps": 3},
    }
    return changed(published(WORKFLOWS[kind]), settings, LOSSLESS, *changes)


@each_kind
def test_the_shipped_workflow_makes_a_video(client: ComfyClient, picture: str, device: Device, kind: str) -> None:
    result = client.run(small(kind, picture))
    clip = frames(client, result)
    assert tuple(clip.shape) == (5, 64, 64, 3) and clip.float().std() > 1
    assert device.here in text(result, SAMPLER)
    again = client.run(small(kind, picture, {SAMPLER: {"seed": 2}}))
    assert not torch.equal(frames(client, again), clip)


def test_both_experts_are_named_and_heard(client: ComfyClient, picture: str) -> None:
    seed = {"seed": 53}  # of no other test's: a prompt that ComfyUI knows is answered from its cache, without a word
    base = client.run(small("a14b", picture, {SAMPLER: seed}))
    assert [line.split(":")[0] for line in lines(base, SAMPLER)[1:3]] == ["core", "core_late"]
    for change in ({"late_guidance_scale": 9.0}, {"guidance_scale": 9.0}, {"late_guidance_scale": -1.0, "shift": 1.0}):
        other = client.run(small("a14b", picture, {SAMPLER: {**change, **seed}}))
        assert not torch.equal(frames(client, other), frames(client, base)), change


@each_kind
def test_four_steps_without_guidance(client: ComfyClient, picture: str, kind: str) -> None:
    """As models are used that were distilled."""
    distilled = {
        SAMPLER: {"steps": 4, "guidance_scale": 1.0, "late_guidance_scale": 1.0, "scheduler": "euler", "shift": 5.0}
    }
    assert tuple(frames(client, client.run(small(kind, picture, distilled))).shape) == (5, 64, 64, 3)


@each_kind
def test_the_latents_are_a_video_of_the_cores(client: ComfyClient, picture: str, kind: str) -> None:
    """The core's nodes for videos cut the clip after its first frame of latents, of which one frame is decoded."""
    prompt = small(kind, picture)
    cut = node("TrimVideoLatent", samples=[SAMPLER, 0], trim_amount=1)
    result = client.run(changed({**prompt, "20": cut}, {DECODE: {"latents": ["20", 0]}}))
    assert tuple(frames(client, result).shape) == (1, 64, 64, 3)


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        ("wan21", {"num_frames": 6}, "Wan 2.1 makes a frame and then 4 at a time, found 6: near are 5 and 9."),
        ("wan21", {"width": 72}, "Width is a multiple of 16 for Wan 2.1, found 72: the nearest is 64."),
        ("ti2v", {"height": 80}, "Height is a multiple of 32 for Wan 2.2 TI2V, found 80: the nearest is 64."),
    ],
    ids=str,
)
def test_a_size_that_it_does_not_make_is_refused_in_a_sentence(
    client: ComfyClient, picture: str, kind: str, change: dict[str, Any], sentence: str
) -> None:
    result = client.run(small(kind, picture, {CONDITIONING: change}))
    assert result.status == "error"
    assert result.error is not None and sentence in result.error


def test_a_scheduler_of_another_family_is_refused_in_a_sentence(client: ComfyClient, picture: str) -> None:
    result = client.run(small("wan21", picture, {SAMPLER: {"scheduler": "ddim"}}))
    assert result.error is not None
    assert "Wan 2.1 is sampled by the scheduler unipc or euler or dpmpp_2m, found ddim." in result.error


def test_a_shift_asked_of_i2vgen_xl_is_refused(client: ComfyClient, picture: str) -> None:
    other = {LOADER: {"checkpoint": "tiny-random"}, SAMPLER: {"shift": 5.0, "scheduler": "ddim"}}
    result = client.run(small("wan21", picture, other))
    assert result.error is not None
    assert "Only a model of flow matching has steps to shift, found a shift of 5." in result.error


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime")
def test_engines_make_the_clip_that_eager_pytorch_makes(client: ComfyClient, picture: str, device: Device) -> None:
    fresh, engines = {CONDITIONING: {"prompt": "a kite"}}, {ENGINES: {"backend": "onnxruntime", "on_missing": "build"}}
    one, other = client.run(small("wan21", picture, fresh, engines)), client.run(small("wan21", picture, fresh))
    assert "built in" in text(one, CONDITIONING)
    assert not any("eager" in text(one, name) for name in (CONDITIONING, SAMPLER, DECODE))
    assert_alike(frames(client, one), frames(client, other), device, 1)

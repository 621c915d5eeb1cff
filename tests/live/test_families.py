"""Stable Video Diffusion and Wan through the same nodes: the shipped workflows, small, and what the nodes say."""

from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.helpers.single_files import (
    TEXT_FILE,
    write_svd_file,
    write_svd_folder,
    write_wan_files,
    write_wan_folder,
)
from i2v_tensorrt.tests.live.answers import failure, frames, free, lines, movie, run, text
from i2v_tensorrt.tests.live.device import Device, assert_alike, decibels
from i2v_tensorrt.tests.live.graphs import LOSSLESS, Changes, Prompt, builder, changed, gradient, node, png, published
from i2v_tensorrt.tests.live.ids import (
    BUILDER,
    CHECKPOINT,
    CONDITIONING,
    DECODE,
    ENGINES,
    LOADER,
    PICTURE,
    SAMPLER,
    SVD,
    WANS,
)

WORKFLOWS = {
    "svd": workflow_names.SVD,
    "wan21": workflow_names.WAN21,
    "a14b": workflow_names.WAN22,
    "ti2v": workflow_names.WAN22_TI2V,
}
CHECKPOINTS = {"svd": SVD, **WANS}
NUM_FRAMES = {"svd": 4, **dict.fromkeys(WANS, 5)}
NO_TEXT = "Stable Video Diffusion has no text encoder: the prompts are not used."
I2VGEN_XL = {
    LOADER: {"checkpoint": CHECKPOINT},
    SAMPLER: {"scheduler": "ddim", "min_guidance_scale": -1.0},
}
each_kind = pytest.mark.parametrize("kind", WORKFLOWS)
each_wan = pytest.mark.parametrize("kind", WANS)


def small(kind: str, picture: str, *changes: Changes) -> Prompt:
    """The shipped workflow, small, lossless and in eager PyTorch."""
    settings = {
        PICTURE: {"image": picture},
        LOADER: {"checkpoint": CHECKPOINTS[kind]},
        ENGINES: {"precision": "auto", "backend": "eager"},
        CONDITIONING: {"width": 64, "height": 64, "num_frames": NUM_FRAMES[kind]},
        SAMPLER: {"steps": 3},
    }
    return changed(published(WORKFLOWS[kind]), settings, LOSSLESS, *changes)


@each_kind
def test_the_shipped_workflow_makes_a_video(client: ComfyClient, picture: str, device: Device, kind: str) -> None:
    free(client)  # a loader that another test has run says nothing again
    result = run(client, small(kind, picture))
    clip = frames(client, result)
    assert tuple(clip.shape) == (NUM_FRAMES[kind], 64, 64, 3) and clip.float().std() > 1
    assert device.here in text(result, SAMPLER)
    assert not torch.equal(movie(client, small(kind, picture, {SAMPLER: {"seed": 2}})), clip)
    if kind == "svd":
        family, *hints = text(result, LOADER).splitlines()
        assert family == f"svd, {device.here}" and NO_TEXT in hints


@pytest.mark.parametrize("kind", ["svd", "wan21"])
def test_single_files_make_a_video(
    client: ComfyClient, picture: str, base_directory: Path, tmp_path: Path, kind: str
) -> None:
    models = base_directory / "models"
    if kind == "svd":
        file = write_svd_file(write_svd_folder(tmp_path / kind), models)
    else:
        file = write_wan_files(write_wan_folder(tmp_path / kind, kind), models, kind)
    result = run(client, small(kind, picture, {LOADER: {"checkpoint": file.name}}))
    assert tuple(frames(client, result).shape) == (NUM_FRAMES[kind], 64, 64, 3)
    taken = [line for line in lines(result, LOADER) if f" from {TEXT_FILE}" in line]
    assert len(taken) == (kind == "wan21")


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backend", "total"), [("svd", "auto", 4), ("wan21", "onnxruntime", 8)])
def test_engines_make_the_clip_that_eager_pytorch_makes(
    client: ComfyClient, device: Device, kind: str, backend: str, total: int, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("onnxruntime" if backend == "onnxruntime" else "builder_backend")
    fresh = client.upload_image(png(gradient(blue=55)), f"{kind}.png")
    built = run(client, small(kind, fresh, {ENGINES: {"backend": backend, "on_missing": "build"}}))
    assert f"engines: 0 of {total}" in text(built, ENGINES)
    assert "built in" in text(built, CONDITIONING)
    assert not any("eager" in text(built, name) for name in (CONDITIONING, SAMPLER, DECODE))
    assert_alike(frames(client, built), movie(client, small(kind, fresh)), device, 1)


@pytest.mark.slow
def test_wan_multiplies_in_fp8_without_pictures(client: ComfyClient, device: Device) -> None:
    if torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    fresh = client.upload_image(png(gradient(blue=77)), "fp8.png")
    engines = {"backend": "inductor", "precision": "fp8", "on_missing": "eager"}
    prompt = small("wan21", fresh, {ENGINES: engines})
    building = builder(component="core", backend="inductor", precision="fp8", num_frames=5)
    report = text(run(client, {LOADER: prompt[LOADER], BUILDER: building}), BUILDER)
    assert "bf16 with products in fp8" in report
    result = run(client, prompt)
    assert lines(result, SAMPLER)[1] == f"inductor, bf16 on {device.place}"
    apart = frames(client, result).double() - movie(client, small("wan21", fresh)).double()
    assert 25 < decibels(float((apart / 255).square().mean())) < 60


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("svd", {CONDITIONING: {"motion_bucket_id": 255}}),
        ("svd", {CONDITIONING: {"noise_aug_strength": 1.0}}),
        ("svd", {CONDITIONING: {"noise_aug_strength": 1.0, "noise_aug_seed": 3}}),
        ("svd", {CONDITIONING: {"fps": 30}}),
        ("svd", {SAMPLER: {"min_guidance_scale": 3.0}}),
        ("svd", {DECODE: {"chunk": 1}}),
        ("a14b", {SAMPLER: {"late_guidance_scale": 9.0}}),
        ("a14b", {SAMPLER: {"guidance_scale": 9.0}}),
        ("a14b", {SAMPLER: {"late_guidance_scale": -1.0, "shift": 1.0}}),
    ],
    ids=str,
)
def test_every_input_of_its_own_counts(client: ComfyClient, picture: str, kind: str, change: Changes) -> None:
    assert not torch.equal(movie(client, small(kind, picture, change)), movie(client, small(kind, picture)))


def test_both_experts_are_named(client: ComfyClient, picture: str) -> None:
    seed = {"seed": 53}  # of no other test's: a prompt that ComfyUI knows is answered from its cache, without a word
    result = run(client, small("a14b", picture, {SAMPLER: seed}))
    assert [line.split(":")[0] for line in lines(result, SAMPLER)[1:3]] == ["core", "core_late"]


@each_wan
def test_four_steps_without_guidance(client: ComfyClient, picture: str, kind: str) -> None:
    """As models are used that were distilled."""
    distilled = {"steps": 4, "guidance_scale": 1.0, "late_guidance_scale": 1.0, "scheduler": "euler", "shift": 5.0}
    assert tuple(movie(client, small(kind, picture, {SAMPLER: distilled})).shape) == (5, 64, 64, 3)


@each_wan
def test_the_latents_are_a_video_of_the_cores(client: ComfyClient, picture: str, kind: str) -> None:
    """The core's nodes for videos cut the clip after its first frame of latents, of which one frame is decoded."""
    prompt = small(kind, picture) | {"20": node("TrimVideoLatent", samples=[SAMPLER, 0], trim_amount=1)}
    assert tuple(movie(client, changed(prompt, {DECODE: {"latents": ["20", 0]}})).shape) == (1, 64, 64, 3)


def test_what_is_left_out_is_the_published_default(client: ComfyClient, picture: str) -> None:
    run(client, small("svd", picture))
    left_out: dict[str, Any] = dict.fromkeys(("motion_bucket_id", "noise_aug_strength", "noise_aug_seed"))
    changes = {CONDITIONING: left_out, SAMPLER: {"min_guidance_scale": None, "seed": 9}}
    assert text(run(client, small("svd", picture, changes)), CONDITIONING).startswith("cache hit")


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({CONDITIONING: {"prompt": "a boat"}}, CONDITIONING, NO_TEXT),
        ({DECODE: {"chunk": 2}}, DECODE, "Decoded in 2 parts, between which colours may jump: try a chunk of 4."),
        (
            {**I2VGEN_XL, CONDITIONING: {"motion_bucket_id": 200, "prompt": "a boat"}},
            CONDITIONING,
            "I2VGen-XL is told to move by its prompt: motion bucket",
        ),
    ],
    ids=["a prompt", "parts", "motion of I2VGen-XL"],
)
def test_what_is_of_no_use_or_costs_quality_is_told(
    client: ComfyClient, picture: str, changes: Changes, name: str, told: str
) -> None:
    _, *said = lines(run(client, small("svd", picture, changes)), name)
    assert [line[: len(told)] for line in said if not line.startswith("eager, ")] == [told]


def test_a_clip_decoded_at_once_has_no_parts(client: ComfyClient, picture: str) -> None:
    assert "parts" not in text(run(client, small("svd", picture, {DECODE: {"chunk": 4}})), DECODE)


@pytest.mark.parametrize(
    ("kind", "changes", "sentence"),
    [
        (
            "wan21",
            {CONDITIONING: {"num_frames": 6}},
            "Wan 2.1 makes a frame and then 4 at a time, found 6: near are 5 and 9.",
        ),
        ("wan21", {CONDITIONING: {"width": 72}}, "Width is a multiple of 16 for Wan 2.1, found 72: the nearest is 64."),
        (
            "ti2v",
            {CONDITIONING: {"height": 80}},
            "Height is a multiple of 32 for Wan 2.2 TI2V, found 80: the nearest is 64.",
        ),
        (
            "svd",
            {SAMPLER: {"scheduler": "ddim"}},
            "Stable Video Diffusion is sampled by the scheduler euler, found ddim.",
        ),
        (
            "wan21",
            {SAMPLER: {"scheduler": "ddim"}},
            "Wan 2.1 is sampled by the scheduler unipc or euler or dpmpp_2m, found ddim.",
        ),
        (
            "wan21",
            {**I2VGEN_XL, SAMPLER: {"shift": 5.0, "scheduler": "ddim"}},
            "Only a model of flow matching has steps to shift, found a shift of 5.",
        ),
    ],
    ids=str,
)
def test_what_it_cannot_make_is_refused_in_a_sentence(
    client: ComfyClient, picture: str, kind: str, changes: Changes, sentence: str
) -> None:
    assert sentence in failure(client, small(kind, picture, changes))

"""TensorRT-RTX from a graph on a host without a GPU: engines for other machines, and the way out."""

import subprocess

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient, Event
from i2v_tensorrt.remote.comfyui.server import ComfyHost
from i2v_tensorrt.tests.live.graphs import (
    BUILDER,
    CONDITIONING,
    DECODE,
    ENGINES,
    LOADER,
    SAMPLER,
    SAVE,
    Prompt,
    builder,
    changed,
    clip,
    node,
    only,
    published,
    text,
)


@pytest.fixture(autouse=True)
def library(host: ComfyHost) -> None:
    """Skips where there is a GPU, or the host's own Python has no TensorRT-RTX to build with."""
    if torch.cuda.is_available():
        pytest.skip("here is a GPU: this is about hosts without one")
    command = [str(host.python), "-c", "import tensorrt_rtx"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"tensorrt-rtx is not installed in {host.python}")


def building(picture: str, target: str, **inputs: object) -> Prompt:
    return only(clip(picture), LOADER) | {BUILDER: builder(target=target, **inputs)}


def test_an_engine_is_built_cancelled_built_and_found(client: ComfyClient, picture: str) -> None:
    def cancel(event: Event) -> None:
        if event.kind == "progress" and event.data["node"] == BUILDER and event.data["value"] > 0:
            client.interrupt(event.data["prompt_id"])

    assert client.run(building(picture, "sm_86"), cancel).status == "interrupted"

    built = client.run(building(picture, "sm_86"))
    assert built.error is None
    assert "image_encoder: built in" in text(built, BUILDER)
    assert "tensorrt for sm_86, fp16" in text(built, BUILDER)
    assert "unverified here" in text(built, BUILDER)
    steps = [value for value, _ in built.progress[BUILDER]]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert steps[-1] == 100

    # Another widget of no consequence for this network, so that ComfyUI does not answer from its own cache.
    found = client.run(building(picture, "sm_86", num_frames=5))
    assert "image_encoder: already there" in text(found, BUILDER)


def test_the_loader_says_why_it_cannot_run_here_and_the_graph_ends_with_a_video(
    client: ComfyClient, picture: str
) -> None:
    prompt = clip(picture)
    prompt[ENGINES] = changed(published("image_to_video"), {ENGINES: {"backend": "tensorrt"}})[ENGINES]
    prompt = changed(prompt, {name: {"model": [ENGINES, 0]} for name in (CONDITIONING, SAMPLER, DECODE)})
    result = client.run(prompt)
    assert result.error is None
    assert "TensorRT runs on NVIDIA GPUs, found none" in text(result, ENGINES)
    assert "core runs in eager PyTorch, which is slower. TensorRT runs on" in text(result, SAMPLER)
    assert result.outputs[SAVE]["images"]


def test_a_graph_that_shall_stop_says_the_same(client: ComfyClient, picture: str) -> None:
    prompt = clip(picture)
    wishes = {ENGINES: {"backend": "tensorrt", "on_missing": "stop"}}
    prompt[ENGINES] = changed(published("image_to_video"), wishes)[ENGINES]
    prompt = changed(prompt, {name: {"model": [ENGINES, 0]} for name in (CONDITIONING, SAMPLER, DECODE)})
    result = client.run(prompt)
    assert result.status == "error"
    assert result.error is not None
    assert "TensorRT runs on NVIDIA GPUs, found none" in result.error


@pytest.mark.parametrize(
    ("precision", "target", "with_pictures", "told"),
    [
        ("int8", "sm_89", False, "int8 takes its scales from pictures, found none"),
        ("fp8", "sm_86", True, "fp8 needs a GPU of sm_89 or newer, found sm_86"),
        ("fp16", "sm_89", True, "are for int8 and fp8, found fp16"),
    ],
)
def test_what_int8_and_fp8_lack_is_said(
    client: ComfyClient, picture: str, precision: str, target: str, with_pictures: bool, told: str
) -> None:
    inputs = {"component": "core", "precision": precision, "width": 64, "height": 64, "num_frames": 4}
    prompt = building(picture, target, **inputs)
    if with_pictures:
        prompt["30"] = node("EmptyImage", width=64, height=64, batch_size=2, color=0x3366AA)
        prompt["31"] = node("PrimitiveStringMultiline", value="pan left\n\nzoom in\n")
        prompt[BUILDER]["inputs"] |= {"pictures": ["30", 0], "prompts": ["31", 0]}
    result = client.run(prompt)
    assert result.status == "error"
    assert told in str(result.error)

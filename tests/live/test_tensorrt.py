"""TensorRT-RTX from a graph on a host without a GPU: engines for other machines, and the way out."""

import subprocess

import pytest
import torch

from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.remote.comfyui.server import ComfyHost
from i2v_tensorrt.tests.live.answers import failure, interrupt_at, run, text
from i2v_tensorrt.tests.live.graphs import Prompt, builder, clip, node, only, with_engines
from i2v_tensorrt.tests.live.ids import BUILDER, ENGINES, LOADER, SAMPLER, SAVE


@pytest.fixture(autouse=True)
def library(host: ComfyHost) -> None:
    """Skips where there is a GPU, or the host's own Python has no TensorRT-RTX to build with."""
    if torch.cuda.is_available():
        pytest.skip("here is a GPU: this is about hosts without one")
    command = [str(host.python), "-c", "import tensorrt_rtx"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip(f"tensorrt-rtx is not installed in {host.python}")


def building(target: str, **inputs: object) -> Prompt:
    return only(clip(""), LOADER) | {BUILDER: builder(target=target, **inputs)}


def test_an_engine_is_built_cancelled_built_and_found(client: ComfyClient) -> None:
    assert client.run(building("sm_86"), interrupt_at(client, BUILDER, 1)).status == "interrupted"

    built = run(client, building("sm_86"))
    for told in ("image_encoder: built in", "tensorrt for sm_86, fp16", "unverified here"):
        assert told in text(built, BUILDER)
    steps = [value for value, _ in built.progress[BUILDER]]
    assert steps == sorted(steps)
    assert len(set(steps)) > 2
    assert steps[-1] == 100

    # Another widget of no consequence for this network, so that ComfyUI does not answer from its own cache.
    assert "image_encoder: already there" in text(run(client, building("sm_86", num_frames=5)), BUILDER)


def test_the_loader_says_why_it_cannot_run_here_and_the_graph_ends_with_a_video_or_in_a_sentence(
    client: ComfyClient, picture: str
) -> None:
    result = run(client, with_engines(clip(picture), backend="tensorrt"))
    assert "TensorRT runs on NVIDIA GPUs, found none" in text(result, ENGINES)
    assert "core runs in eager PyTorch, which is slower. TensorRT runs on" in text(result, SAMPLER)
    assert result.outputs[SAVE]["images"]
    stopped = with_engines(clip(picture), backend="tensorrt", on_missing="stop")
    assert "TensorRT runs on NVIDIA GPUs, found none" in failure(client, stopped)


@pytest.mark.parametrize(
    ("precision", "target", "with_pictures", "told"),
    [
        ("int8", "sm_89", False, "int8 takes its scales from pictures, found none"),
        ("fp8", "sm_86", True, "fp8 needs a GPU of sm_89 or newer, found sm_86"),
        ("fp16", "sm_89", True, "are for int8 and fp8, found fp16"),
    ],
)
def test_what_int8_and_fp8_lack_is_said(
    client: ComfyClient, precision: str, target: str, with_pictures: bool, told: str
) -> None:
    prompt = building(target, component="core", precision=precision)
    if with_pictures:
        prompt["30"] = node("EmptyImage", width=64, height=64, batch_size=2, color=0x3366AA)
        prompt["31"] = node("PrimitiveStringMultiline", value="pan left\n\nzoom in\n")
        prompt[BUILDER]["inputs"] |= {"pictures": ["30", 0], "prompts": ["31", 0]}
    assert told in failure(client, prompt)

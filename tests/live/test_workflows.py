"""The published API workflows as they ship, with only checkpoint, sizes, steps and picture changed."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.runtime.engines.policy import MISS_POLICIES
from i2v_tensorrt.tests.live.device import Device
from i2v_tensorrt.tests.live.graphs import (
    BUILDER,
    CONDITIONING,
    DECODE,
    ENGINES,
    LOADER,
    PICTURE,
    SAMPLER,
    SAVE,
    SMALL,
    Prompt,
    builder,
    changed,
    gradient,
    png,
    published,
    text,
)

CORE_SAVE = "9"


def small(name: str, picture: str) -> Prompt:
    return changed(published(name), SMALL, {PICTURE: {"image": picture}})


def building(picture: str) -> Prompt:
    """The published graph as it is on a GPU, on any device."""
    return changed(small("image_to_video", picture), {ENGINES: {"on_missing": "build"}})


@dataclass(frozen=True)
class Video:
    """What a saved file says of itself."""

    container: str
    width: int
    height: int
    fps: float
    num_frames: int
    metadata: dict[str, str]


def saved(client: ComfyClient, described: dict[str, Any]) -> Video:
    data = client.view(described["filename"], described["subfolder"], described["type"])
    with av.open(io.BytesIO(data)) as container:
        stream = container.streams.video[0]
        num_frames = sum(1 for _ in container.decode(stream))
        fps = float(stream.average_rate or 0)
        return Video(container.format.name, stream.width, stream.height, fps, num_frames, dict(container.metadata))


def without_fingerprints(prompt: Prompt) -> Prompt:
    """A prompt as it was posted: the server adds to each node by what it would notice a change."""
    return {name: {key: value for key, value in node.items() if key != "is_changed"} for name, node in prompt.items()}


@pytest.fixture(scope="module")
def fresh_picture(client: ComfyClient) -> str:
    """A picture that no other test has encoded, so that every engine is needed."""
    return client.upload_image(png(gradient(blue=99)), "fresh.png")


@pytest.fixture(scope="module")
def built(client: ComfyClient, fresh_picture: str) -> RunResult:
    """The published graph, whose Engine Loader builds the engines that no test before it has built."""
    result = client.run(building(fresh_picture))
    assert (result.status, result.error) == ("success", None)
    return result


@pytest.mark.slow
class TestThroughEngines:
    def test_they_are_built_for_the_host(self, built: RunResult, base_directory: Path, device: Device) -> None:
        assert "of 5\nthe rest is built when needed" in text(built, ENGINES)
        assert "built in" in text(built, CONDITIONING)
        assert not any("eager" in text(built, name) for name in (CONDITIONING, SAMPLER, DECODE))
        manifests = (base_directory / "models" / "i2v_engines").glob("*/manifest.json")
        bodies = [json.loads(manifest.read_text("utf-8"))["body"] for manifest in manifests]
        networks = [body["spec"]["network"] for body in bodies if body["target"]["device"] == device.kind]
        assert {network["component"] for network in networks if network["family"] == "i2vgen_xl"} == {
            "core", "text_encoder", "image_encoder", "vae_encoder", "vae_decoder",
        }  # fmt: skip

    def test_the_clip_is_an_mp4_with_its_prompt_inside(
        self, client: ComfyClient, built: RunResult, fresh_picture: str, base_directory: Path
    ) -> None:
        (described,) = built.outputs[SAVE]["images"]
        video = saved(client, described)
        assert "mp4" in video.container
        assert (video.width, video.height, video.fps, video.num_frames) == (64, 64, 8, 4)
        assert without_fingerprints(json.loads(video.metadata["prompt"])) == building(fresh_picture)
        assert str(base_directory) not in video.metadata["prompt"]

    @pytest.mark.usefixtures("built")
    @pytest.mark.parametrize("policy", MISS_POLICIES)
    def test_another_seed_takes_what_is_there(self, client: ComfyClient, fresh_picture: str, policy: str) -> None:
        changes = {SAMPLER: {"seed": 2}, ENGINES: {"on_missing": policy}}
        result = client.run(changed(building(fresh_picture), changes))
        assert (result.status, result.error) == ("success", None)
        assert not any(word in text(result, name) for name in (SAMPLER, DECODE) for word in ("built in", "eager"))

    @pytest.mark.usefixtures("built")
    def test_the_engine_builder_means_the_same_engines(self, client: ComfyClient, fresh_picture: str) -> None:
        prompt = {
            LOADER: building(fresh_picture)[LOADER],
            BUILDER: builder(component="all", shape_policy="exact"),
        }
        result = client.run(prompt)
        assert (result.status, result.error) == ("success", None)
        lines = text(result, BUILDER).splitlines()
        assert len(lines) == 5
        assert all(": already there by " in line for line in lines)


def test_with_core_nodes_ends_in_the_core_save_video(client: ComfyClient, picture: str) -> None:
    prompt = changed(small("with_core_nodes", picture), {"3": {"width": 64, "height": 64}})
    result = client.run(prompt)
    assert (result.status, result.error) == ("success", None)
    (described,) = result.outputs[CORE_SAVE]["images"]
    assert described["subfolder"] == "video"
    video = saved(client, described)
    assert "mp4" in video.container
    assert (video.width, video.height, video.fps, video.num_frames) == (128, 128, 8, 4)
    assert without_fingerprints(json.loads(video.metadata["prompt"])) == prompt

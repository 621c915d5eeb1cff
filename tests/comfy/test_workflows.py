"""The published API workflows as they ship, with only checkpoint, sizes, steps and picture changed."""

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import pytest

from i2v_tensorrt.jobs.comfy_client import ComfyClient
from i2v_tensorrt.tests.comfy.graphs import (
    CONDITIONING,
    DECODE,
    ENGINES,
    PICTURE,
    SAMPLER,
    SAVE,
    SMALL,
    Prompt,
    changed,
    gradient,
    png,
    published,
    text,
)

CORE_SAVE = "9"


def small(name: str, picture: str) -> Prompt:
    return changed(published(name), SMALL, {PICTURE: {"image": picture}})


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


@pytest.mark.slow
def test_image_to_video_runs_through_engines_built_for_the_host(client: ComfyClient, base_directory: Path) -> None:
    picture = client.upload_image(png(gradient(blue=99)), "never_encoded.png")
    prompt = small("image_to_video", picture)
    result = client.run(prompt)
    assert (result.status, result.error) == ("success", None)
    assert "engines: 0 of 5" in text(result, ENGINES)
    assert "built in" in text(result, CONDITIONING)
    assert all("onnxruntime, fp32" in text(result, name) for name in (SAMPLER, DECODE))
    assert len(list((base_directory / "models" / "i2v_engines").glob("*/manifest.json"))) == 5

    (described,) = result.outputs[SAVE]["images"]
    video = saved(client, described)
    assert "mp4" in video.container
    assert (video.width, video.height, video.fps, video.num_frames) == (64, 64, 8, 4)
    assert without_fingerprints(json.loads(video.metadata["prompt"])) == prompt
    assert str(base_directory) not in video.metadata["prompt"]

    again = client.run(changed(prompt, {SAMPLER: {"seed": 2}}))
    assert again.status == "success"
    assert "onnxruntime, fp32" in text(again, SAMPLER)
    assert not any("built in" in text(again, name) for name in (SAMPLER, DECODE))


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

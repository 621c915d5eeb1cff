"""I2V Interpolate Frames in a live ComfyUI: frames, videos with sound, and the core's own loader and node."""

from __future__ import annotations

import shutil
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from i2v_tensorrt.common.pack_paths import INTERPOLATION
from i2v_tensorrt.pipeline.media.formats import Audio, VideoOptions
from i2v_tensorrt.pipeline.media.reader import read_video
from i2v_tensorrt.pipeline.media.video import write_video
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import failure, run, text
from i2v_tensorrt.tests.live.graphs import Prompt, node, save
from i2v_tensorrt.tests.live.ids import SAVE

NODE = "20"
COUNT, RATE = 5, 10


def moving(count: int = COUNT, height: int = 64, width: int = 80) -> torch.Tensor:
    """A soft spot that moves two pixels a frame over a gentle slope, [count, height, width, 3]."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    slope = torch.stack([x / width, y / height, (x + y) / (width + height)], dim=-1) * 0.4
    spots = [torch.exp(-((x - 30 - 2 * n) ** 2 + (y - 32) ** 2) / 60.0) for n in range(count)]
    return torch.stack([(slope + 0.5 * spot[..., None]).clamp(0, 1) for spot in spots])


@pytest.fixture(scope="module")
def video(base_directory: Path) -> str:
    """A file with pictures and a tone, in the server's input folder."""
    name = "moving.mp4"
    tone = torch.sin(torch.arange(24000 * COUNT // RATE) / 24000 * 2 * torch.pi * 440)[None].repeat(2, 1) / 2
    write_video(moving(), base_directory / "input" / name, VideoOptions("mp4-h264", RATE, 1), audio=Audio(tone, 24000))
    return name


@pytest.fixture(scope="module")
def core_model(base_directory: Path, client: ComfyClient) -> Prompt:
    """The core's loader with the pack's weights."""
    if "FrameInterpolationModelLoader" not in client.object_info():
        pytest.skip("This ComfyUI has no frame interpolation of its own.")
    folder = base_directory / "models" / "frame_interpolation"
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(INTERPOLATION, folder / "pack.safetensors")
    return {"10": node("FrameInterpolationModelLoader", model_name="pack.safetensors")}


def interpolate(**inputs: object) -> Prompt:
    defaults = {"target": "factor", "value": 2.0, "fps": 16.0, "on_missing": "eager", "backend": "auto"}
    return {NODE: node("I2VTRT_InterpolateFrames", **{**defaults, **inputs})}


def frames_of(name: str) -> Prompt:
    """A video's frames as IMAGE."""
    return {"1": node("LoadVideo", file=name), "2": node("GetVideoComponents", video=["1", 0])}


def saving(fps: object) -> Prompt:
    """The node that saves the frames without loss."""
    return {SAVE: save("", frames=[NODE, 0], fps=fps, format="mkv-ffv1", filename_prefix="between/clip")[SAVE]}


def saved_frames(prompt: Prompt, client: ComfyClient, output: Path) -> torch.Tensor:
    return read_video(output / text(run(client, prompt), SAVE).splitlines()[0])


def written(prompt: Prompt, client: ComfyClient, output: Path) -> torch.Tensor:
    """The frames that come out of the prompt, saved without loss."""
    return saved_frames({**prompt, **saving([NODE, 2])}, client, output)


def test_frames_become_more_and_keep_the_originals(client: ComfyClient, video: str, output: Path) -> None:
    prompt = {**frames_of(video), **interpolate(frames=["2", 0], value=2.5)}
    result = run(client, {**prompt, "30": node("PreviewAny", source=[NODE, 2])})
    assert text(result, NODE).startswith(f"{COUNT} frames at 16 fps to 40 fps: 8 made")
    found = written(prompt, client, output)
    assert len(found) == 13
    plain = written({**frames_of(video), **interpolate(frames=["2", 0], value=1.0)}, client, output)
    assert torch.equal(found[5], plain[2]) and torch.equal(found[10:], plain[4:].expand(3, -1, -1, -1))


def test_a_video_is_streamed_and_keeps_its_sound(client: ComfyClient, video: str, output: Path) -> None:
    prompt = {
        "1": node("LoadVideo", file=video),
        **interpolate(frames=["1", 0], target="fps", value=20.0),
        "40": node("SaveVideo", video=[NODE, 1], filename_prefix="between/video", format="auto", codec="auto"),
    }
    result = run(client, prompt)
    (saved,) = result.outputs["40"]["images"]
    with av.open(str(output / saved["subfolder"] / saved["filename"])) as container:
        pictures, sounds = container.streams.video[0], container.streams.audio[0]
        assert (pictures.average_rate, pictures.frames) == (Fraction(20), 2 * COUNT)
        loud = np.concatenate([frame.to_ndarray() for frame in container.decode(sounds)], axis=1)
        assert abs(loud.shape[1] / sounds.rate - COUNT / RATE) < 0.1 and 0.2 < np.abs(loud).max() < 0.9


def test_the_core_s_loader_and_node_give_the_same(
    client: ComfyClient, video: str, output: Path, core_model: Prompt
) -> None:
    core = {
        **frames_of(video),
        **core_model,
        NODE: node("FrameInterpolate", interp_model=["10", 0], images=["2", 0], multiplier=2),
    }
    theirs = saved_frames({**core, **saving(16.0)}, client, output)
    for model in ({}, {"model": ["10", 0]}):
        loader = core_model if model else {}
        ours = written({**frames_of(video), **loader, **interpolate(frames=["2", 0], **model)}, client, output)
        assert len(theirs) == len(ours) - 1 == 2 * COUNT - 1
        assert (ours[:-1] - theirs).abs().max() <= 1.01 / 255


def test_what_does_not_fit_is_said_in_a_sentence(client: ComfyClient, video: str) -> None:
    prompt = {**frames_of(video), **interpolate(frames=["2", 0], value=500.0)}
    told = failure(client, {**prompt, "30": node("PreviewAny", source=[NODE, 2])})
    assert "Expected from 1/64 to 64 new frames of each, found 500." in told
    told = failure(client, {**interpolate(frames="no link"), "30": node("PreviewAny", source=[NODE, 2])})
    assert "over a link" in told

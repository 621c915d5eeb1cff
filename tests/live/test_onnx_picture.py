"""I2V ONNX Picture in a live ComfyUI: pictures, masks, videos, and files that are none."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from i2v_tensorrt.pipeline.media.reader import read_video
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.helpers.onnx_files import HOSTILE, NETWORKS, write_network
from i2v_tensorrt.tests.live.answers import failure, pictures, run, text
from i2v_tensorrt.tests.live.graphs import Prompt, node, save
from i2v_tensorrt.tests.live.ids import SAVE
from i2v_tensorrt.tests.live.test_interpolate_frames import frames_of, saved_frames, video

pytestmark = pytest.mark.usefixtures("onnxruntime")
NODE = "20"
__all__ = ["video"]


@pytest.fixture(scope="module", autouse=True)
def files(base_directory: Path) -> None:
    for name, network in {**NETWORKS, **HOSTILE}.items():
        write_network(network, base_directory / "models" / "onnx" / "small" / f"{name}.onnx")


def picture(name: str, **inputs: object) -> Prompt:
    defaults = {"frames": ["2", 0], "fps": 16.0, "on_missing": "eager", "backend": "auto"}
    return {NODE: node("I2VTRT_OnnxPicture", file=f"small/{name}.onnx", **{**defaults, **inputs})}


def saving(source: str = NODE) -> Prompt:
    return {SAVE: save("", frames=[source, 0], fps=16.0, format="mkv-ffv1", filename_prefix="onnx/clip")[SAVE]}


def test_frames_go_through_the_network(client: ComfyClient, video: str, output: Path) -> None:
    plain = saved_frames({**frames_of(video), **saving("2")}, client, output)
    result = run(client, {**frames_of(video), **picture("enlarge"), **saving()})
    lines = text(result, NODE).splitlines()
    assert lines[0] == "x NCHW, 3 channels 0..1, multiples of 1 -> y NCHW, 3 channels 0..1, x2"
    assert lines[1].startswith("5 frames, ")
    ours = saved_frames({**frames_of(video), **picture("enlarge"), **saving()}, client, output)
    assert torch.equal(ours, plain.repeat_interleave(2, 1).repeat_interleave(2, 2))


@pytest.mark.usefixtures("builder_backend")
def test_an_engine_gives_the_same(client: ComfyClient, video: str, output: Path) -> None:
    found = {}
    for backend, on_missing in (("eager", "eager"), ("onnxruntime", "build")):
        ours = picture("signed", backend=backend, on_missing=on_missing)
        found[backend] = saved_frames({**frames_of(video), **ours, **saving()}, client, output)
    assert (found["eager"] - found["onnxruntime"]).abs().max() <= 1.01 / 255


def test_a_network_of_masks_gives_masks(client: ComfyClient, video: str) -> None:
    shown = {
        "30": node("MaskToImage", mask=[NODE, 1]),
        "31": node("PreviewImage", images=["30", 0]),
        "32": node("PreviewImage", images=[NODE, 0]),
    }
    result = run(client, {**frames_of(video), **picture("logits", range_in="0..1"), **shown})
    masks, frames = (pictures(client, result, name) for name in ("31", "32"))
    assert [each.size for each in masks] == [(80, 64)] * 5
    assert [one.convert("RGB").tobytes() for one in masks] == [other.convert("RGB").tobytes() for other in frames]
    assert "guessed" not in text(result, NODE) or "range in" not in text(result, NODE)


def test_a_video_comes_back_as_one_with_its_sound(client: ComfyClient, video: str, output: Path) -> None:
    prompt = {
        "1": node("LoadVideo", file=video),
        **picture("enlarge", frames=["1", 0]),
        "40": node("SaveVideo", video=[NODE, 2], filename_prefix="onnx/video", format="auto", codec="auto"),
    }
    (saved,) = run(client, prompt).outputs["40"]["images"]
    path = output / saved["subfolder"] / saved["filename"]
    import av

    assert read_video(path).shape == (5, 128, 160, 3)
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 1


def test_a_second_picture_and_a_number(client: ComfyClient, video: str, output: Path) -> None:
    plain = saved_frames({**frames_of(video), **saving("2")}, client, output)
    half = saved_frames({**frames_of(video), **picture("number", number=0.0), **saving()}, client, output)
    assert (half - plain / 2).abs().max() <= 1.01 / 255
    black = {"3": node("EmptyImage", width=8, height=8, batch_size=1, color=0)}
    ours = {**black, **picture("second", more=["3", 0])}
    mixed = saved_frames({**frames_of(video), **ours, **saving()}, client, output)
    assert (mixed - plain / 2).abs().max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("vast", "Expected tensors of at most 8 GiB"),
        ("labels", "Expected an output of 1, 3 or 4 channels"),
        ("second", "Expected a picture for the network's input other, found none"),
    ],
)
def test_what_does_not_fit_is_said_in_a_sentence(client: ComfyClient, video: str, name: str, told: str) -> None:
    prompt = {**frames_of(video), **picture(name), "30": node("PreviewAny", source=[NODE, 0])}
    assert told in failure(client, prompt)

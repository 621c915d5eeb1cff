"""I2V Upscale Video in a live ComfyUI, beside the core's own node."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import save_file

from i2v_tensorrt.benchmarks.upscale_models import compact, esrgan
from i2v_tensorrt.pipeline.media.reader import read_video
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import failure, run, text
from i2v_tensorrt.tests.live.graphs import Prompt, node, save
from i2v_tensorrt.tests.live.ids import SAVE
from i2v_tensorrt.tests.live.test_interpolate_frames import frames_of, saved_frames, video
from i2v_tensorrt.tests.live.texts import run_and_hear

NODE = "20"
NAME, DENSE = "compact.safetensors", "dense.safetensors"
__all__ = ["video"]


@pytest.fixture(scope="module")
def upscaler(base_directory: Path) -> Prompt:
    """The core's loader with a small network."""
    folder = base_directory / "models" / "upscale_models"
    folder.mkdir(parents=True, exist_ok=True)
    save_file(compact(layers=2, width=8, scale=2), folder / NAME)
    save_file(esrgan(blocks=1, width=16), folder / DENSE)
    return {"10": node("UpscaleModelLoader", model_name=NAME)}


def upscale(**inputs: object) -> Prompt:
    defaults = {"target": "model", "value": 2.0, "fps": 16.0, "on_missing": "eager", "backend": "auto", "tile": 64}
    return {NODE: node("I2VTRT_UpscaleVideo", **{"upscale_model": ["10", 0], **defaults, **inputs})}


def saving() -> Prompt:
    return {SAVE: save("", frames=[NODE, 0], fps=16.0, format="mkv-ffv1", filename_prefix="large/clip")[SAVE]}


def test_tiles_give_what_the_core_gives_without(
    client: ComfyClient, video: str, upscaler: Prompt, output: Path
) -> None:
    core = node("ImageUpscaleWithModel", upscale_model=["10", 0], image=["2", 0])
    theirs = saved_frames({**frames_of(video), **upscaler, NODE: core, **saving()}, client, output)
    prompt = {**frames_of(video), **upscaler, **upscale(frames=["2", 0]), **saving()}
    ours = saved_frames(prompt, client, output)
    assert theirs.shape == ours.shape == (5, 128, 160, 3)
    assert (ours - theirs).abs().max() <= 1.01 / 255


@pytest.mark.usefixtures("onnxruntime")
def test_an_engine_gives_the_same(client: ComfyClient, video: str, upscaler: Prompt, output: Path) -> None:
    found = {}
    for backend, on_missing in (("eager", "eager"), ("onnxruntime", "build")):
        ours = upscale(frames=["2", 0], backend=backend, on_missing=on_missing)
        found[backend] = saved_frames({**frames_of(video), **upscaler, **ours, **saving()}, client, output)
    assert (found["eager"] - found["onnxruntime"]).abs().max() <= 1.01 / 255


def test_a_dense_network_is_written_anew_for_its_engine_and_gives_the_same(
    client: ComfyClient, video: str, upscaler: Prompt, output: Path
) -> None:
    dense = {"10": node("UpscaleModelLoader", model_name=DENSE)}
    core = node("ImageUpscaleWithModel", upscale_model=["10", 0], image=["2", 0])
    theirs = saved_frames({**frames_of(video), **dense, NODE: core, **saving()}, client, output)
    prompt = {**frames_of(video), **dense, **upscale(frames=["2", 0], backend="inductor", on_missing="build")}
    found = run(client, {**prompt, **saving()})
    ours = read_video(output / text(found, SAVE).splitlines()[0])
    assert theirs.shape == ours.shape == (5, 256, 320, 3)
    assert (ours - theirs).abs().max() <= 1.01 / 255
    assert "\ninductor, " in text(found, NODE)


@pytest.mark.usefixtures("onnxruntime")
@pytest.mark.parametrize("backend", ["eager", "onnxruntime"])
def test_the_cores_own_node_takes_a_compiled_model(
    client: ComfyClient, video: str, upscaler: Prompt, output: Path, backend: str
) -> None:
    """A tile as high as the frame, and one that it does not fill: beyond its edges the frame is mirrored there.

    So nothing differs but where the network, of four convolutions, sees those edges.
    """
    core = {NODE: node("ImageUpscaleWithModel", upscale_model=["10", 0], image=["2", 0])}
    plain = saved_frames({**frames_of(video), **upscaler, **core, **saving()}, client, output)
    for tile in (128, 64):
        settings = {"upscale_model": ["10", 0], "on_missing": "build", "backend": backend, "tile": tile}
        compiled = {"11": node("I2VTRT_CompileUpscaleModel", **settings)}
        core = {NODE: node("ImageUpscaleWithModel", upscale_model=["11", 0], image=["2", 0])}
        result, heard = run_and_hear(client, {**frames_of(video), **upscaler, **compiled, **core, **saving()})
        ours = read_video(output / text(result, SAVE).splitlines()[0])
        seen = 0 if tile == 64 else 4 * 2
        apart = (ours - plain).abs()
        assert apart[:, : 128 - seen, : 160 - seen].max() <= 1.01 / 255
        assert apart.mean() < 1 / 255
        assert any(line.startswith(f"{backend}, ") for line in heard["11"])


def test_what_is_no_upscale_model_is_refused(client: ComfyClient) -> None:
    compiled = {"11": node("I2VTRT_CompileUpscaleModel", upscale_model="10", on_missing="eager", backend="auto")}
    told = failure(client, {**compiled, "30": node("PreviewAny", source=["11", 0])})
    assert "Expected upscale_model over a link from a node that gives it, found '10'." in told


def test_a_video_is_enlarged_to_a_longest_side_and_keeps_its_sound(
    client: ComfyClient, video: str, upscaler: Prompt, output: Path
) -> None:
    prompt = {
        "1": node("LoadVideo", file=video),
        **upscaler,
        **upscale(frames=["1", 0], target="longest side", value=120.0),
        "40": node("SaveVideo", video=[NODE, 1], filename_prefix="large/video", format="auto", codec="auto"),
    }
    result = run(client, prompt)
    assert text(result, NODE).startswith("80x64 to 120x96: ")
    (saved,) = result.outputs["40"]["images"]
    path = output / saved["subfolder"] / saved["filename"]
    import av

    assert read_video(path).shape == (5, 96, 120, 3)
    with av.open(str(path)) as container:
        assert len(container.streams.audio) == 1


def test_what_does_not_fit_is_said_in_a_sentence(client: ComfyClient, video: str, upscaler: Prompt) -> None:
    prompt = {**frames_of(video), **upscaler, **upscale(frames=["2", 0], target="factor", value=900.0)}
    told = failure(client, {**prompt, "30": node("PreviewAny", source=[NODE, 0])})
    assert "Expected new frames of 1 to 16384 pixels a side, found 72000." in told

"""The published API workflows as they ship, with only checkpoint, sizes, steps, picture and backend changed."""

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import av
import pytest

from i2v_tensorrt.common import workflow_names
from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.runtime.engines.policy import MISS_POLICIES
from i2v_tensorrt.tests.live.answers import engines_in, run, text
from i2v_tensorrt.tests.live.device import HALF_PSNR, Device, rare_encoders
from i2v_tensorrt.tests.live.graphs import Prompt, builder, changed, gradient, node, png, published
from i2v_tensorrt.tests.live.ids import BUILDER, CHECKPOINT, CONDITIONING, DECODE, ENGINES, LOADER, SAMPLER, SAVE

CLIP = {"width": 64, "height": 64, "num_frames": 4}
SMALL = {
    "I2VTRT_ModelLoader": {"checkpoint": CHECKPOINT},
    "I2VTRT_EngineBuilder": CLIP,
    "I2VTRT_Conditioning": {**CLIP, "fps": 8},
    "I2VTRT_DDIMSampler": {"steps": 2},
}


def small(name: str, picture: str, **engines: str) -> Prompt:
    """A workflow that takes seconds; its Engine Loader has those inputs."""
    prompt = published(name)
    kinds = {**SMALL, "LoadImage": {"image": picture}, "I2VTRT_EngineLoader": engines}
    return changed(prompt, {number: kinds.get(each["class_type"], {}) for number, each in prompt.items()})


def numbers(prompt: Prompt, kind: str) -> list[str]:
    return [number for number, node in prompt.items() if node["class_type"] == f"I2VTRT_{kind}"]


@dataclass(frozen=True)
class Video:
    """What a saved file says of itself."""

    container: str
    size: tuple[int, int]
    fps: float
    num_frames: int
    metadata: dict[str, str]

    def prompt(self) -> Prompt:
        """The prompt inside as it was posted: the server adds to each node by what it would notice a change."""
        found = json.loads(self.metadata["prompt"])
        return {name: {key: each[key] for key in each if key != "is_changed"} for name, each in found.items()}


def saved(client: ComfyClient, result: RunResult, name: str) -> Video:
    """What that node has written."""
    (described,) = result.outputs[name]["images"]
    with av.open(io.BytesIO(client.view(**described))) as container:
        stream = container.streams.video[0]
        num_frames = sum(1 for _ in container.decode(stream))
        fps, size = float(stream.average_rate or 0), (stream.width, stream.height)
        return Video(container.format.name, size, fps, num_frames, dict(container.metadata))


@pytest.fixture(scope="module")
def building(client: ComfyClient) -> Prompt:
    """With a picture that no other test has encoded, so that every engine is needed."""
    fresh = client.upload_image(png(gradient(blue=99)), "fresh.png")
    return small(workflow_names.QUICK_START, fresh, on_missing="build")


@pytest.fixture(scope="module")
def built(client: ComfyClient, building: Prompt, base_directory: Path) -> RunResult:
    """The graph's run, whose Engine Loader builds the engines: what tests before it have built is gone."""
    for folder in engines_in(base_directory):
        shutil.rmtree(folder)
    return run(client, building)


@pytest.mark.slow
@pytest.mark.usefixtures("builder_backend", "built")
class TestThroughEngines:
    """The published graph as it is on a GPU, on any device."""

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
        self, client: ComfyClient, building: Prompt, built: RunResult, base_directory: Path
    ) -> None:
        video = saved(client, built, SAVE)
        assert "mp4" in video.container
        assert (video.size, video.fps, video.num_frames) == ((64, 64), 8, 4)
        assert video.prompt() == building
        assert str(base_directory) not in video.metadata["prompt"]

    @pytest.mark.parametrize("policy", MISS_POLICIES)
    def test_another_seed_takes_what_is_there(self, client: ComfyClient, building: Prompt, policy: str) -> None:
        result = run(client, changed(building, {SAMPLER: {"seed": 2}, ENGINES: {"on_missing": policy}}))
        assert not any(word in text(result, name) for name in (SAMPLER, DECODE) for word in ("built in", "eager"))

    def test_the_engine_builder_means_the_same_engines(self, client: ComfyClient, building: Prompt) -> None:
        prompt = {LOADER: building[LOADER], BUILDER: builder(component="all", shape_policy="exact")}
        lines = text(run(client, prompt), BUILDER).splitlines()
        assert [": already there by " in line for line in lines] == [True] * 5


def test_with_core_nodes_ends_in_the_core_save_video(client: ComfyClient, picture: str) -> None:
    prompt = changed(small(workflow_names.MIXED, picture), {"3": {"width": 64, "height": 64}})
    result = run(client, prompt)
    assert result.outputs["9"]["images"][0]["subfolder"] == "video"
    video = saved(client, result, "9")
    assert "mp4" in video.container
    assert (video.size, video.fps, video.num_frames) == ((128, 128), 8, 4)
    assert video.prompt() == prompt


def test_two_prompts_are_encoded_once_and_play_side_by_side(client: ComfyClient, picture: str) -> None:
    prompt = small(workflow_names.TWO_PROMPTS, picture, backend="eager")
    samplers, (saver,) = numbers(prompt, "DDIMSampler"), numbers(prompt, "SaveVideo")
    # Two of 64, and 8 between them.
    assert text(run(client, prompt), saver).splitlines()[1].startswith("136x64, 4 frames")
    # The server's own cache of outputs answers for the conditioning now; another way to the same picture does not.
    again = changed(prompt, {number: {"seed": 8} for number in samplers})
    again["90"] = node("ImageScaleBy", image=["1", 0], upscale_method="nearest-exact", scale_by=1.0)
    for number in numbers(prompt, "Conditioning"):
        again[number]["inputs"]["image"] = ["90", 0]
    second = run(client, again)
    assert all("cache hit" in text(second, number) for number in numbers(prompt, "Conditioning"))


def test_eager_beside_eager_is_equal(client: ComfyClient, picture: str) -> None:
    prompt = small(workflow_names.COMPARE, picture, backend="eager")
    (compare,) = numbers(prompt, "CompareVideos")
    result = run(client, prompt)
    assert text(result, compare) == "PSNR equal, SSIM 1.0000"
    assert text(result, "10").splitlines()[1].startswith("136x")  # two of 64, and the gap
    assert len(result.outputs["11"]["images"]) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime")
def test_eager_beside_an_engine_is_close(client: ComfyClient, picture: str, device: Device) -> None:
    prompt = small(workflow_names.COMPARE, picture, backend="onnxruntime")
    (compare,) = numbers(prompt, "CompareVideos")
    rows = {row[0]: row[1] for row in run(client, prompt).outputs[compare]["table"]}
    # What differs by HALF_PSNR takes about 1 - mse / (2 * variance) of the similarity of frames that spread by 0.1.
    psnr, ssim = (60, 0.999) if device.precision == "fp32" else (HALF_PSNR, 0.998)
    assert float(rows["PSNR"].removesuffix(" dB")) > psnr
    assert float(rows["SSIM, worst"]) > ssim


def test_low_memory_runs_one_branch_and_one_frame_at_a_time(client: ComfyClient, picture: str) -> None:
    prompt = small(workflow_names.LOW_MEMORY, picture, backend="eager")
    (decode,) = numbers(prompt, "VAEDecode")
    result = run(client, prompt)
    assert {total for _, total in result.progress[decode]} == {4}
    assert result.outputs["7"]["images"]


@pytest.mark.slow
@pytest.mark.usefixtures("builder_backend")
def test_prebuilding_builds_all_and_lists_them_afterwards(client: ComfyClient, picture: str, device: Device) -> None:
    prompt = small(workflow_names.PREBUILD, picture, backend="eager")
    (builder,), (manager,) = numbers(prompt, "EngineBuilder"), numbers(prompt, "EngineManager")
    changes = {builder: {"component": "image_encoder", "precision": device.rare}}
    before = rare_encoders(client, device)
    result = run(client, changed(prompt, changes))
    assert "image_encoder: " in text(result, builder)
    (key,) = rare_encoders(client, device) - before
    assert key in {row[0] for row in result.outputs[manager]["table"][1:]}
    run(client, {"1": node("I2VTRT_EngineManager", action="delete", engine=key)})

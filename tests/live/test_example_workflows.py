"""The example workflows as they ship, with only the checkpoint, sizes, steps and the backend changed."""

import pytest

from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.tests.live.device import HALF_PSNR, Device, rare_encoders
from i2v_tensorrt.tests.live.graphs import CHECKPOINT, Prompt, changed, node, published, text

CLIP = {"width": 64, "height": 64, "num_frames": 4}
SMALL = {
    "I2VTRT_ModelLoader": {"checkpoint": CHECKPOINT},
    "I2VTRT_EngineLoader": {"backend": "eager"},
    "I2VTRT_EngineBuilder": CLIP,
    "I2VTRT_Conditioning": CLIP,
    "I2VTRT_DDIMSampler": {"steps": 2},
}


def small(name: str, picture: str) -> Prompt:
    """A workflow that takes seconds."""
    prompt = published(name)
    changes = {number: dict(SMALL.get(node["class_type"], {})) for number, node in prompt.items()}
    for number, each in prompt.items():
        if each["class_type"] == "LoadImage":
            changes[number] = {"image": picture}
    return changed(prompt, changes)


def numbers(prompt: Prompt, kind: str) -> list[str]:
    return [number for number, node in prompt.items() if node["class_type"] == f"I2VTRT_{kind}"]


def run(client: ComfyClient, prompt: Prompt) -> RunResult:
    result = client.run(prompt)
    assert (result.status, result.error) == ("success", None)
    return result


def test_two_prompts_are_encoded_once_and_play_side_by_side(client: ComfyClient, picture: str) -> None:
    prompt = small("prompts_over_one_picture", picture)
    samplers, (saver,) = numbers(prompt, "DDIMSampler"), numbers(prompt, "SaveVideo")
    first = run(client, prompt)
    assert text(first, saver).splitlines()[1].startswith("136x64, 4 frames")  # two of 64, and 8 between them
    # The server's own cache of outputs answers for the conditioning now; another way to the same picture does not.
    again = changed(prompt, {number: {"seed": 8} for number in samplers})
    again["90"] = node("ImageScaleBy", image=["1", 0], upscale_method="nearest-exact", scale_by=1.0)
    for number in numbers(prompt, "Conditioning"):
        again[number]["inputs"]["image"] = ["90", 0]
    second = run(client, again)
    assert all("cache hit" in text(second, number) for number in numbers(prompt, "Conditioning"))


def test_eager_beside_eager_is_equal(client: ComfyClient, picture: str) -> None:
    prompt = small("compare_eager_and_engine", picture)
    (compare,) = numbers(prompt, "CompareVideos")
    result = run(client, prompt)
    assert text(result, compare) == "PSNR equal, SSIM 1.0000"
    assert text(result, "10").splitlines()[1].startswith("136x")  # two of 64, and the gap
    assert len(result.outputs["11"]["images"]) == 4


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime")
def test_eager_beside_an_engine_is_close(client: ComfyClient, picture: str, device: Device) -> None:
    prompt = small("compare_eager_and_engine", picture)
    (compare,), (engines,) = numbers(prompt, "CompareVideos"), numbers(prompt, "EngineLoader")
    result = run(client, changed(prompt, {engines: {"backend": "onnxruntime"}}))
    rows = {row[0]: row[1] for row in result.outputs[compare]["table"]}
    # What differs by HALF_PSNR takes about 1 - mse / (2 * variance) of the similarity of frames that spread by 0.1.
    psnr, ssim = (60, 0.999) if device.precision == "fp32" else (HALF_PSNR, 0.998)
    assert float(rows["PSNR"].removesuffix(" dB")) > psnr
    assert float(rows["SSIM, worst"]) > ssim


def test_low_memory_runs_one_branch_and_one_frame_at_a_time(client: ComfyClient, picture: str) -> None:
    prompt = small("low_memory", picture)
    (decode,) = numbers(prompt, "VAEDecode")
    result = run(client, prompt)
    assert {total for _, total in result.progress[decode]} == {4}
    assert result.outputs["7"]["images"]


@pytest.mark.slow
def test_prebuilding_builds_all_and_lists_them_afterwards(client: ComfyClient, picture: str, device: Device) -> None:
    prompt = small("prebuild_engines", picture)
    (builder,), (manager,) = numbers(prompt, "EngineBuilder"), numbers(prompt, "EngineManager")
    changes = {builder: {"component": "image_encoder", "precision": device.rare}}
    before = rare_encoders(client, device)
    result = run(client, changed(prompt, changes))
    assert "image_encoder: " in text(result, builder)
    (key,) = rare_encoders(client, device) - before
    assert key in {row[0] for row in result.outputs[manager]["table"][1:]}
    run(client, {"1": node("I2VTRT_EngineManager", action="delete", engine=key)})

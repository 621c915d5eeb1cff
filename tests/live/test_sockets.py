"""What leaves the pack's nodes works in the core's: LATENT, IMAGE and VIDEO."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path

import av
import pytest
from PIL import Image

from i2v_tensorrt.pipeline.dummies.i2vgen_xl import TinySizes, write_tiny_checkpoint
from i2v_tensorrt.remote.comfyui.client import ComfyClient
from i2v_tensorrt.tests.live.answers import pictures, run
from i2v_tensorrt.tests.live.device import BF16_VAE_PSNR, Device, decibels
from i2v_tensorrt.tests.live.graphs import clip, node
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, LOADER, SAMPLER, SAVE

PUBLISHED_VAE = TinySizes(groups=32, vae_channels=(128, 256, 512, 512), vae_layers=2)
"""The tiny UNet beside a VAE of the published size, which is the only one that the core's VAE Loader knows."""
CHECKPOINT = "tiny-unet-whole-vae"
VAE_FILE = "whole.safetensors"
CORE_VAE, CORE_DECODE, PROBE = "20", "21", "22"


@pytest.fixture
def whole_vae(base_directory: Path) -> Iterator[None]:
    """One VAE of random weights as our checkpoint has it and as the core loads it; 335 MB, removed at the end."""
    folder = write_tiny_checkpoint(base_directory / "models" / "i2v" / CHECKPOINT, PUBLISHED_VAE)
    vae = base_directory / "models" / "vae" / VAE_FILE
    vae.parent.mkdir(exist_ok=True)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").rename(vae)
    (folder / "vae" / "diffusion_pytorch_model.safetensors").symlink_to(vae)
    yield
    vae.unlink()
    shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("whole_vae")
def test_latents_decode_in_the_core_as_in_ours(client: ComfyClient, picture: str, device: Device) -> None:
    """The core decodes in fp32 on a CPU, as we do, and in bf16 on most GPUs, where we decode in fp16."""
    prompt = clip(picture, {LOADER: {"checkpoint": CHECKPOINT}, CONDITIONING: {"num_frames": 2}})
    del prompt[SAVE]
    prompt[CORE_VAE] = node("VAELoader", vae_name=VAE_FILE)
    prompt[CORE_DECODE] = node("VAEDecode", samples=[SAMPLER, 0], vae=[CORE_VAE, 0])
    prompt[PROBE] = node("ProbeDifference", a=[DECODE, 0], b=[CORE_DECODE, 0])
    found = run(client, prompt).outputs[PROBE]
    assert found["shapes"] == [[2, 64, 64, 3], [2, 64, 64, 3]]
    low, high = found["range"]
    assert high - low > 0.05  # frames that show something, or equality would be no proof
    if device.kind == "cpu":
        assert found["difference"][0] <= 2e-3
    assert decibels(found["mse"][0]) >= BF16_VAE_PSNR


def test_frames_go_into_image_nodes(client: ComfyClient, picture: str) -> None:
    prompt = clip(picture, {CONDITIONING: {"prompt": "frames"}})
    del prompt[SAVE]
    size, webp = {"width": 100, "height": 80}, {"fps": 8.0, "lossless": True, "quality": 80, "method": "default"}
    prompt["20"] = node("ImageScale", image=[DECODE, 0], upscale_method="bilinear", crop="disabled", **size)
    prompt["21"] = node("PreviewImage", images=["20", 0])
    prompt["22"] = node("SaveAnimatedWEBP", images=["20", 0], filename_prefix="sockets", **webp)
    result = run(client, prompt)
    assert [shown.size for shown in pictures(client, result, "21")] == [(100, 80)] * 4
    (described,) = result.outputs["22"]["images"]
    with Image.open(io.BytesIO(client.view(**described))) as animation:
        assert (animation.size, getattr(animation, "n_frames", 1)) == ((100, 80), 4)


def test_video_goes_into_the_core_save_video(client: ComfyClient, picture: str) -> None:
    prompt = clip(picture, {CONDITIONING: {"prompt": "video", "fps": 12}})
    prompt["20"] = node("SaveVideo", video=[SAVE, 0], filename_prefix="core", format="auto", codec="auto")
    (described,) = run(client, prompt).outputs["20"]["images"]
    with av.open(io.BytesIO(client.view(**described))) as video:
        stream = video.streams.video[0]
        assert (stream.width, stream.height, stream.average_rate) == (64, 64, 12)
        assert sum(1 for _ in video.decode(stream)) == 4


def test_latents_of_the_core_decode_in_ours(client: ComfyClient) -> None:
    prompt = {
        LOADER: node("I2VTRT_ModelLoader", checkpoint="tiny-random"),
        "20": node("EmptyLatentImage", width=72, height=64, batch_size=3),
        DECODE: node("I2VTRT_VAEDecode", model=[LOADER, 0], latents=["20", 0]),
        "21": node("PreviewImage", images=[DECODE, 0]),
    }
    assert [shown.size for shown in pictures(client, run(client, prompt), "21")] == [(72, 64)] * 3

"""What leaves the pack's nodes: files of every format by Save Video, and LATENT, IMAGE and VIDEO for the core's."""

import io
import math
import shutil
import struct
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import av
import pytest
from PIL import Image, ImageSequence

from i2v_tensorrt.pipeline.dummies.i2vgen_xl import TinySizes, write_tiny_checkpoint
from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.remote.comfyui.messages import made_files
from i2v_tensorrt.tests.live.answers import free, json_of, pictures, run, text
from i2v_tensorrt.tests.live.device import BF16_VAE_PSNR, Device, decibels
from i2v_tensorrt.tests.live.graphs import Prompt, clip, node, save
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, LOADER, PICTURE, SAMPLER, SAVE

CONTAINERS = {
    "mp4-h264": ("mp4", "h264"),
    "mp4-h265": ("mp4", "hevc"),
    "webm-vp9": ("webm", "vp9"),
    "webm-av1": ("webm", "libdav1d"),
    "mkv-ffv1": ("matroska", "ffv1"),
}
IMAGES = {"webp": "WEBP", "gif": "GIF"}
NOT_PLAYED = ("mkv-ffv1", "mp4-h265")
"""What no page plays: it gets another file."""
COLOURS = (0xFF0000, 0x00FF00, 0x0000FF)
RGB = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]


def three_colours(**inputs: Any) -> Prompt:
    """A red, a green and a blue frame into Save Video."""
    sources = {str(n): node("EmptyImage", width=64, height=48, batch_size=1, color=c) for n, c in enumerate(COLOURS)}
    batches = {
        "10": node("ImageBatch", image1=["0", 0], image2=["1", 0]),
        "11": node("ImageBatch", image1=["10", 0], image2=["2", 0]),
    }
    return sources | batches | {SAVE: save("", frames=["11", 0], **inputs)[SAVE]}


def shown(client: ComfyClient, result: RunResult) -> bytes:
    (described,) = result.outputs[SAVE]["images"]
    return client.view(**described)


def written(result: RunResult, output: Path) -> Path:
    return output / text(result, SAVE).splitlines()[0]


def three_frames(path: Path, key: str) -> list[tuple[int, ...]]:
    """The colour in the middle of each frame of a file, which is of the format's kind."""
    if key in IMAGES:
        with Image.open(path) as image:
            assert (image.format, image.size, getattr(image, "n_frames", 1)) == (IMAGES[key], (64, 48), 3)
            return [each.convert("RGB").getpixel((32, 24)) for each in ImageSequence.Iterator(image)]
    with av.open(path) as video:
        stream, (container, codec) = video.streams.video[0], CONTAINERS[key]
        assert container in video.format.name and stream.codec_context.name == codec
        assert (stream.width, stream.height, float(stream.average_rate or 0)) == (64, 48, 8)
        assert {"prompt"} <= {name.lower() for name in video.metadata}
        return [tuple(frame.to_ndarray(format="rgb24")[24, 32].tolist()) for frame in video.decode(stream)]


@pytest.mark.parametrize("key", [*CONTAINERS, *IMAGES])
def test_a_file_of_every_kind_is_written_and_the_page_gets_what_it_can_play(
    client: ComfyClient, output: Path, key: str
) -> None:
    result = run(client, three_colours(format=key, filename_prefix=f"kinds/{key}"))
    middle = three_frames(written(result, output), key)
    if key in IMAGES:
        assert all(max(map(abs, map(int.__sub__, a, b))) < 12 for a, b in zip(middle, RGB, strict=True))
    assert [max(range(3), key=colour.__getitem__) for colour in middle] == [0, 1, 2]

    # A program is told of the file itself, not of what the page plays in its place.
    content = written(result, output).read_bytes()
    (file,) = made_files(result.outputs)
    assert output / file.subfolder / file.filename == written(result, output)
    assert client.view(file.filename, file.subfolder, file.type) == content

    (described,) = result.outputs[SAVE]["images"]
    assert described["type"] == ("temp" if key in NOT_PLAYED else "output")
    if key in NOT_PLAYED:
        with av.open(io.BytesIO(shown(client, result))) as video:
            assert video.streams.video[0].codec_context.name == "h264"
            assert sum(1 for _ in video.decode(video=0)) == 3
    else:
        assert shown(client, result) == content
    assert result.outputs[SAVE]["animated"] == [key != "gif"]


@pytest.mark.parametrize(("key", "count"), [("mp4-h264", 1), ("gif", 1), ("mkv-ffv1", 2)])
def test_the_page_counts_a_file_once(client: ComfyClient, key: str, count: int) -> None:
    """Its list of what was made counts all that a node names: the file, and the copy that it plays in its place."""
    result = run(client, three_colours(format=key, filename_prefix=f"counted/{key}"))
    try:
        job = json_of(f"{client.url}/api/jobs/{result.prompt_id}")
    except HTTPError:
        pytest.skip("this ComfyUI's page has no list of jobs")
    assert job["outputs_count"] == count


def test_pingpong_plays_forward_then_backward(client: ComfyClient, output: Path) -> None:
    prompt = three_colours(format="mkv-ffv1", pingpong=True, filename_prefix="pingpong")
    prompt["8"] = node("GetVideoComponents", video=[SAVE, 0])
    prompt["9"] = node("PreviewImage", images=["8", 0])
    result = run(client, prompt)
    with av.open(written(result, output)) as video:
        frames = [tuple(frame.to_ndarray(format="rgb24")[0, 0].tolist()) for frame in video.decode(video=0)]
    assert frames == [RGB[0], RGB[1], RGB[2], RGB[1]]
    assert [image.getpixel((0, 0)) for image in pictures(client, result, "9")] == frames


@pytest.mark.parametrize(("key", "size"), [("mp4-h264", (66, 64)), ("webm-vp9", (66, 64)), ("mkv-ffv1", (65, 63))])
def test_an_odd_size_is_padded_with_a_word_where_it_must_be(
    client: ComfyClient, picture: str, output: Path, key: str, size: tuple[int, int]
) -> None:
    prompt = save(picture, frames=["2", 0], format=key, filename_prefix="odd")
    prompt["2"] = node("ImageScale", image=[PICTURE, 0], upscale_method="area", width=65, height=63, crop="disabled")
    result = run(client, prompt)
    with av.open(written(result, output)) as video:
        assert (video.streams.video[0].width, video.streams.video[0].height) == size
    assert ("Padded from 65x63 to 66x64" in text(result, SAVE)) == (size != (65, 63))


def tone(seconds: float, rate: int = 16000) -> bytes:
    """A WAV file with a tone of 440 Hz."""
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        samples = (round(20000 * math.sin(2 * math.pi * 440 * n / rate)) for n in range(round(seconds * rate)))
        file.writeframes(b"".join(struct.pack("<h", sample) for sample in samples))
    return buffer.getvalue()


@pytest.mark.parametrize("key", [*CONTAINERS, "gif"])
def test_sound_goes_along_for_as_long_as_the_picture(client: ComfyClient, output: Path, key: str) -> None:
    prompt = three_colours(format=key, fps=6, audio=["12", 0], filename_prefix="sound")
    prompt["12"] = node("LoadAudio", audio=client.upload_image(tone(2.0), "tone.wav"))
    result = run(client, prompt)
    if key == "gif":
        assert "The audio was left out, because gif has no sound." in text(result, SAVE)
        return
    with av.open(written(result, output)) as video:
        sound = video.streams.audio[0]
        blocks = [frame.to_ndarray() for frame in video.decode(sound)]
        length_s = sum(block.shape[-1] for block in blocks) / sound.codec_context.sample_rate
    assert max(abs(block.astype(float)).max() for block in blocks) > 0.3
    assert length_s == pytest.approx(0.5, abs=0.1)
    with av.open(io.BytesIO(shown(client, result))) as video:
        assert len(video.streams.audio) == 1, "what the page plays has the sound too"


def test_names_count_up_and_nothing_is_overwritten(client: ComfyClient, output: Path) -> None:
    first = written(run(client, three_colours(filename_prefix="count/up")), output)
    content = first.read_bytes()
    second = written(run(client, three_colours(filename_prefix="count/up", crf=40)), output)
    assert [first.name, second.name] == ["up_00001_.mp4", "up_00002_.mp4"]
    assert first.read_bytes() == content


def test_the_prefix_may_hold_the_core_placeholders(client: ComfyClient, picture: str) -> None:
    result = run(client, save(picture, filename_prefix="%width%x%height%/clip"))
    assert text(result, SAVE).startswith("48x32/clip_00001_.mp4\n48x32, 1 frames, 8 fps, ")


def test_the_same_video_is_given_again_and_never_written_over(client: ComfyClient, output: Path) -> None:
    prompt = three_colours(filename_prefix="again/clip", reuse_result=True)
    first = run(client, prompt)
    free(client)
    again = run(client, prompt)
    *lines, told = text(again, SAVE).splitlines()
    assert lines == text(first, SAVE).splitlines()[:2], "without what else it had to say"
    assert told.startswith("result cache hit: the file was there, ") and told.endswith(" s saved")
    assert made_files(again.outputs) == made_files(first.outputs)
    (path,) = (output / "again").iterdir()

    path.write_bytes(path.read_bytes() + b"changed")
    changed = path.read_bytes()
    free(client)
    assert written(run(client, prompt), output).name == "clip_00002_.mp4"
    assert path.read_bytes() == changed

    other = run(client, three_colours(filename_prefix="again/clip"))
    assert written(other, output).name == "clip_00003_.mp4", "off by default"


PUBLISHED_VAE = TinySizes(groups=32, vae_channels=(128, 256, 512, 512), vae_layers=2)
"""The tiny UNet beside a VAE of the published size, which is the only one that the core's VAE Loader knows."""
WHOLE_VAE = "tiny-unet-whole-vae"
VAE_FILE = "whole.safetensors"
CORE_VAE, CORE_DECODE, PROBE = "20", "21", "22"


@pytest.fixture
def whole_vae(base_directory: Path) -> Iterator[None]:
    """One VAE of random weights as our checkpoint has it and as the core loads it; 335 MB, removed at the end."""
    folder = write_tiny_checkpoint(base_directory / "models" / "i2v" / WHOLE_VAE, PUBLISHED_VAE)
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
    prompt = clip(picture, {LOADER: {"checkpoint": WHOLE_VAE}, CONDITIONING: {"num_frames": 2}})
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

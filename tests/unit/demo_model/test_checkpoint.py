"""The committed checkpoint: the published layout, within its size, and really animating pictures."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.demo_model.training import networks as nets
from i2v_tensorrt.demo_model.training.clips import frame_indices, held_out_seeds
from i2v_tensorrt.demo_model.training.evaluate import Judge, agreement, first_frames, follow, held_out, prompts_of
from i2v_tensorrt.demo_model.training.measure import psnr
from i2v_tensorrt.demo_model.training.sampler import decode, initial_noise, picture_latents, sample
from i2v_tensorrt.demo_model.training.vocabulary import captions

FOLDER = Path(__file__).resolve().parents[3] / "demo_model"
CPU = torch.device("cpu")
INDEX = json.loads((FOLDER / "model_index.json").read_text("utf-8"))
PARTS = {name: value for name, value in INDEX.items() if isinstance(value, list)}


def config(part: str) -> dict[str, Any]:
    return json.loads((FOLDER / part / "config.json").read_text("utf-8"))


@pytest.fixture(scope="module")
def judge() -> Judge:
    networks = nets.load_folder(FOLDER, CPU, torch.float32)
    return Judge(networks, nets.load_tokenizer(FOLDER), CPU, steps=20, guidance=3.0)


def test_it_is_small() -> None:
    sizes = {path.relative_to(FOLDER): path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()}
    apart = sum(size for path, size in sizes.items() if path.parts[0] == "interpolation")
    assert max(sizes.values()) <= 16e6
    assert apart <= 6e6 and sum(sizes.values()) - apart <= 32e6


@pytest.mark.parametrize("part", PARTS)
def test_every_part_loads_with_the_class_it_names(part: str) -> None:
    library, name = PARTS[part]
    if name == "CLIPImageProcessor":
        name = "CLIPImageProcessorPil"
    kind = getattr(importlib.import_module(library), name)
    weights = {"variant": "fp16"} if (FOLDER / part / "config.json").is_file() else {}
    assert isinstance(kind.from_pretrained(FOLDER / part, **weights), kind)


def test_the_schedule_is_the_published_one() -> None:
    stored = json.loads((FOLDER / "scheduler" / "scheduler_config.json").read_text("utf-8"))
    wanted = {
        "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1, "timestep_spacing": "leading",
    }  # fmt: skip
    assert {key: stored[key] for key in wanted} == wanted


def test_widths_fit_together() -> None:
    unet, text, vision = config("unet"), config("text_encoder"), config("image_encoder")
    assert unet["attention_head_dim"] in (32, 64)
    assert all(width % unet["attention_head_dim"] == 0 for width in unet["block_out_channels"])
    assert unet["cross_attention_dim"] == text["hidden_size"] == vision["projection_dim"]
    assert len(config("vae")["block_out_channels"]) == 4 and config("vae")["latent_channels"] == 4


def test_every_word_of_the_captions_is_one_token() -> None:
    tokenizer = nets.load_tokenizer(FOLDER)
    for word in {word for caption in captions() for word in caption.split()}:
        assert len(tokenizer(word)["input_ids"]) == 3, word
    strange = tokenizer("ein Fuchs, 狐!")["input_ids"]
    assert 3 < len(strange) <= 77


def test_the_autoencoder_keeps_held_out_pictures(judge: Judge) -> None:
    clips = held_out(30000, 8, ("still",), CPU)
    pictures = first_frames(clips)
    with torch.no_grad():
        again = decode(judge.networks, picture_latents(judge.networks, pictures)[:, :, None])[:, 0]
    assert float(psnr(again, pictures).mean()) > 27


@pytest.mark.slow
def test_it_animates_held_out_pictures_as_told(judge: Judge) -> None:
    clips = held_out(30100, 2, ("pan left", "rotate clockwise"), CPU, fps=12, adverb=0)
    made = judge.animate(clips, prompts_of(clips))
    assert made.shape == (2, 16, 3, 128, 128)
    assert all(agreement(clips, follow(made, clips)))
    assert float(psnr(made[:, 0], first_frames(clips)).mean()) > 24


@pytest.mark.slow
def test_the_published_pipeline_gives_the_same_frames(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffusers.pipelines.deprecated.i2vgen_xl.pipeline_i2vgen_xl import I2VGenXLPipeline
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPTextModel

    if not hasattr(judge.networks.text, "text_model"):
        monkeypatch.setattr(CLIPTextModel, "text_model", property(lambda self: self), raising=False)
    networks = judge.networks
    extractor: Any = CLIPImageProcessorPil.from_pretrained(FOLDER / "feature_extractor")
    published: Any = I2VGenXLPipeline(
        networks.vae, networks.text, judge.tokenizer, networks.vision,
        extractor, networks.unet, nets.build_scheduler(),
    )  # fmt: skip
    published.set_progress_bar_config(disable=True)
    clips = held_out(30200, 1, ("pan right",), CPU, fps=12)
    picture = (first_frames(clips) * 255).round() / 255
    noise = initial_noise(held_out_seeds(30200, 1, CPU), 16, 128)
    prompt, told = "pan right", {"num_inference_steps": 3, "guidance_scale": 3.0, "target_fps": 12}
    image = Image.fromarray((picture[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy())
    theirs = published(
        prompt, image, 128, 128, latents=noise.clone(), output_type="pt", negative_prompt="", **told
    ).frames
    ours = sample(networks, judge.tokenizer, picture, [prompt], clips.fps, noise, steps=3, guidance=3.0)
    assert float(psnr(torch.as_tensor(theirs)[0], ours[0]).min()) > 30
    assert frame_indices(1, 16, CPU).shape[1] == theirs.shape[1]

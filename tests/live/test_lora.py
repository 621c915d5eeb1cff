"""I2V LoRA in a live ComfyUI: merged, taken off, through engines, and refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import tensor_shapes
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan.lora_names import published as wan_name
from i2v_tensorrt.remote.comfyui.client import ComfyClient, RunResult
from i2v_tensorrt.tests.helpers.loras import KOHYA, PUBLISHED, layers, write_lora
from i2v_tensorrt.tests.live.answers import failure, frames, movie, ran, refused, run, text
from i2v_tensorrt.tests.live.device import Device, assert_alike
from i2v_tensorrt.tests.live.graphs import LOSSLESS, Prompt, changed, clip, node, with_engines
from i2v_tensorrt.tests.live.ids import CONDITIONING, DECODE, ENGINES, LOADER, SAMPLER, SAVE
from i2v_tensorrt.tests.live.test_families import small

LORA = "20"
UNET, EXPERT = "style.safetensors", "speed.safetensors"


@pytest.fixture(scope="module", autouse=True)
def loras(base_directory: Path, tiny_folder: Path, tiny_wan: Callable[[str], Path]) -> Iterator[Path]:
    """A folder of LoRAs for the tiny checkpoints."""
    folder = base_directory / "models" / "loras"
    folder.mkdir(parents=True, exist_ok=True)
    write_lora(folder / UNET, layers(open_model(tiny_folder).checkpoint.parts["unet"]), KOHYA)
    experts = layers(open_model(tiny_wan("a14b")).checkpoint.parts["transformer"])
    of_blocks = {name: shape for name, shape in experts.items() if name.startswith("blocks.")}
    write_lora(folder / EXPERT, of_blocks, PUBLISHED, wan_name)
    yield folder
    for path in folder.rglob("*.safetensors"):  # the folders stay: ComfyUI remembers them
        path.unlink()


def with_lora(prompt: Prompt, **inputs: Any) -> Prompt:
    """The graph with a LoRA behind its loader; whatever took the loader's model takes the LoRA's."""
    asked = {"lora": UNET, "strength": 1.0, **inputs}
    behind = {name: {"model": [LORA, 0]} for name, each in prompt.items() if each["inputs"].get("model") == [LOADER, 0]}
    return changed({**prompt, LORA: node("I2VTRT_LoRA", model=[LOADER, 0], **asked)}, behind)


def test_on_and_off_again(client: ComfyClient, picture: str) -> None:
    plain = clip(picture, LOSSLESS, {SAMPLER: {"seed": 11}})
    without = movie(client, plain)
    result = run(client, with_lora(plain))
    clip_with = frames(client, result)
    assert f"{UNET} at 1: " in text(result, LORA) and " tensors of unet" in text(result, LORA)
    assert not torch.equal(clip_with, without)
    assert torch.equal(movie(client, with_lora(plain, strength=0)), without)
    assert not torch.equal(movie(client, with_lora(plain, strength=-1.0)), clip_with)
    again = changed(plain, {SAVE: {"filename_prefix": "video/again"}})
    assert torch.equal(movie(client, again), without)


def test_it_is_the_checkpoint_with_the_same_weights(
    client: ComfyClient, picture: str, loras: Path, base_directory: Path, tiny_folder: Path
) -> None:
    other = base_directory / "models" / "i2v" / "merged"
    shutil.copytree(tiny_folder, other)
    try:
        merged = open_model(tiny_folder).with_adapter(loras / UNET, 0.5).part("unet", "fp32")
        (file,) = (other / "unet").glob("*.safetensors")
        assert set(tensor_shapes((file,))) == set(merged.state_dict())
        save_file({name: value.contiguous() for name, value in merged.state_dict().items()}, file)
        plain = clip(picture, LOSSLESS, {SAMPLER: {"seed": 12}})
        expected = movie(client, changed(plain, {LOADER: {"checkpoint": other.name}}))
        assert torch.equal(movie(client, with_lora(plain, strength=0.5)), expected)
    finally:
        shutil.rmtree(other)


def test_a_file_that_changes_is_read_again(client: ComfyClient, picture: str, loras: Path) -> None:
    plain = clip(picture, LOSSLESS, {SAMPLER: {"seed": 13}})
    shutil.copy(loras / UNET, loras / "edited.safetensors")
    before = movie(client, with_lora(plain, lora="edited.safetensors"))
    tensors = load_file(loras / "edited.safetensors")
    halved = {name: value / 2 if ".lora_up." in name else value for name, value in tensors.items()}
    save_file(halved, loras / "edited.safetensors")
    result = client.run(with_lora(plain, lora="edited.safetensors"))
    assert LORA in ran(result)
    assert not torch.equal(frames(client, result), before)


@pytest.mark.slow
@pytest.mark.usefixtures("onnxruntime")
def test_each_lora_has_its_engine_and_finds_it_again(client: ComfyClient, picture: str, device: Device) -> None:
    engines = {"backend": "onnxruntime", "on_missing": "build", "shape_policy": "exact", "precision": "auto"}
    plain = with_engines(clip(picture, LOSSLESS), **engines)
    again = {SAMPLER: {"seed": 5}}
    run(client, plain)
    assert built(run(client, with_lora(plain)))
    without, adapted = (run(client, changed(prompt, again)) for prompt in (plain, with_lora(plain)))
    assert not built(without) and not built(adapted)
    expected = movie(client, changed(with_lora(plain), again, {ENGINES: {"backend": "eager"}}))
    assert not torch.equal(frames(client, without), expected)
    assert_alike(frames(client, adapted), expected, device, 2)


def built(result: RunResult) -> list[str]:
    """The nodes that say of themselves that they have built engines."""
    return [name for name in (CONDITIONING, SAMPLER, DECODE) if "built in" in text(result, name)]


@pytest.mark.parametrize("expert", ["both", "high noise", "low noise"])
def test_experts_of_wan(client: ComfyClient, picture: str, expert: str) -> None:
    plain = small("a14b", picture)
    without = movie(client, plain)
    result = client.run(with_lora(plain, lora=EXPERT, expert=expert))
    parts = {"both": ["transformer", "transformer_2"], "high noise": ["transformer"], "low noise": ["transformer_2"]}
    told = text(result, LORA).splitlines()[0]
    assert told == f"{EXPERT} at 1: " + ", ".join(f"20 tensors of {part}" for part in parts[expert])
    assert not torch.equal(frames(client, result), without)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"lora": EXPERT}, "tensors of the LoRA speed.safetensors to fit unet or text_encoder, found: "),
        ({"expert": "high noise"}, "I2VGen-XL has one network and no experts: expected both, found high noise"),
        ({"lora": "cut.safetensors"}, "cut.safetensors is truncated or not a safetensors file"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    client: ComfyClient, picture: str, loras: Path, inputs: dict[str, Any], sentence: str
) -> None:
    (loras / "cut.safetensors").write_bytes((loras / UNET).read_bytes()[:1000])
    assert sentence in failure(client, with_lora(clip(picture), **inputs))


def test_a_name_from_windows_is_found_and_says_what_is_left_out(client: ComfyClient, picture: str, loras: Path) -> None:
    (loras / "wan").mkdir(exist_ok=True)
    picture_encoder = {
        f"diffusion_model.blocks.0.cross_attn.k_img.lora_{side}.weight": torch.ones(2, 2) for side in "AB"
    }
    save_file(load_file(loras / EXPERT) | picture_encoder, loras / "wan" / EXPERT)
    result = client.run(with_lora(small("a14b", picture), lora=f"wan\\{EXPERT}", expert="high noise"))
    told = "2 tensors for a picture encoder that this model does not have are left out"
    assert text(result, LORA).splitlines()[0] == f"{EXPERT} at 1: 20 tensors of transformer; {told}"


@pytest.mark.parametrize(
    "name",
    ["../secret.safetensors", "..\\secret.safetensors", "/etc/passwd", "missing.safetensors", "a.ckpt", "x\x00"],
)
def test_a_name_that_is_not_in_the_list_leads_nowhere(client: ComfyClient, picture: str, name: str) -> None:
    assert "There is no LoRA" in str(refused(client, with_lora(clip(picture), lora=name)))

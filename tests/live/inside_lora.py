"""LoRA files of every dialect: what the pack merges is what ComfyUI's own code makes of the same file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import comfy.lora
import comfy.lora_convert
import comfy.ops
import folder_paths
import torch
from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel
from diffusers import UNetSpatioTemporalConditionModel
from safetensors.torch import load_file, save_file

from i2v_tensorrt.nodes.host import checkpoints, folders
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.dummies.wan import write_tiny_wan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.svd.lora_names import NAMES
from i2v_tensorrt.pipeline.models.wan.lora_names import published
from i2v_tensorrt.tests.helpers.lora_kinds import KINDS, OVER_WEIGHTS, Tensors, filled, magnitude
from i2v_tensorrt.tests.helpers.loras import KOHYA, PUBLISHED, Style, layers, write_lora
from i2v_tensorrt.tests.live.core_models import SVD

TOLERANCE = 1e-6
"""Of the greatest number in a tensor."""
STRENGTHS = (1.0, -0.5)
WAN_STYLES = (
    PUBLISHED,
    KOHYA,
    Style("lora_unet__", ".lora_down.weight", ".lora_up.weight", alpha=True, underscores=True),
    Style("diffusion_model.", ".lora_A.weight", ".lora_B.weight"),
    Style("diffusion_model.", ".lora_A.default.weight", ".lora_B.default.weight"),
    Style("diffusion_model.", ".lora_A", ".lora_B"),
    Style("diffusion_model.", ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"),
)
LAYERS = {
    "transformer": ("blocks.0.attn1.to_q", "blocks.1.ffn.net.0.proj"),
    "unet": ("down_blocks.0.resnets.0.conv1", "down_blocks.0.temp_convs.0.conv1.2"),
}


def as_comfyui_names(part: str, parameter: str) -> str:
    """A parameter's name in ComfyUI's state dict; the UNet's is left as it is in diffusers."""
    module, _, leaf = parameter.rpartition(".")
    if part == "unet":
        return f"diffusion_model.{parameter}"
    return (
        f"diffusion_model.{published(module)}.{leaf}"
        if leaf in ("weight", "bias")
        else "diffusion_model." + published(parameter)
    )


def by_comfyui(path: Path, parameters: Mapping[str, torch.Tensor], strength: float) -> dict[str, torch.Tensor]:
    """What ComfyUI makes of parameters that have its own names, with every tensor of the file used."""
    model: Any = SimpleNamespace(state_dict=lambda: parameters, model_config=SimpleNamespace(unet_config={}))
    names = comfy.lora.model_lora_keys_unet(model, {})
    names |= {name.replace("lora_unet_", "lycoris_"): key for name, key in names.items() if "lora_unet_" in name}
    tensors = comfy.lora_convert.convert_lora(load_file(path))
    patches = comfy.lora.load_lora(tensors, names, log_missing=False)
    merged = {name: value.clone() for name, value in parameters.items()}
    for key, patch in patches.items():
        merged[key] = comfy.lora.calculate_weight([(strength, patch, 1.0, None, None)], merged[key], key)
    return merged


def assert_as_comfyui(model: VideoModel, part: str, path: Path, strength: float, changed: int) -> None:
    """Every parameter of a part is ComfyUI's, and that many have changed."""
    before = {
        as_comfyui_names(part, name): value.detach() for name, value in model.part(part, "fp32").named_parameters()
    }
    theirs = by_comfyui(path, before, strength)
    ours = dict(model.with_adapter(path, strength).part(part, "fp32").named_parameters())
    moved = 0
    for name, value in ours.items():
        expected = theirs[as_comfyui_names(part, name)]
        moved += not torch.equal(value, before[as_comfyui_names(part, name)])
        off, most = float((value.detach() - expected).abs().max()), float(expected.abs().max())
        assert off <= TOLERANCE * most, (name, off, most)
    assert moved == changed, (moved, changed)


def written(path: Path, layer: str, tensors: Tensors) -> None:
    save_file({f"lycoris_{layer.replace('.', '_')}.{name}": value for name, value in tensors.items()}, path)


def case_names_of_trainers(folder: Path) -> None:
    for kind in ("wan21", "ti2v"):
        model = open_model(write_tiny_wan(folder / kind, kind))
        linear = {
            name: shape
            for name, shape in layers(model.checkpoint.parts["transformer"]).items()
            if name.startswith("blocks.")
        }
        for style in WAN_STYLES:
            write_lora(folder / "a.safetensors", linear, style, published)
            assert_as_comfyui(model, "transformer", folder / "a.safetensors", 0.75, len(linear))


def case_names_of_trainers_for_both_experts(folder: Path) -> None:
    model = open_model(write_tiny_wan(folder / "a14b", "a14b"))
    chosen = {name: shape for name, shape in layers(model.checkpoint.parts["transformer"]).items() if "attn" in name}
    write_lora(folder / "a.safetensors", chosen, PUBLISHED, published)
    for part in ("transformer", "transformer_2"):
        assert_as_comfyui(model, part, folder / "a.safetensors", 1.0, len(chosen))


def known_to_comfyui(kind: str, dimensions: int) -> bool:
    """Whether ComfyUI's own formula for a kind takes a weight of so many dimensions.

    Its cores are those of pictures, and its Kronecker products fail with a core and over time.
    """
    if kind.startswith("lokr"):
        return "core" not in kind and not ("whole" in kind and dimensions == 5)
    return dimensions == 4 or ("core" not in kind and kind != "locon")


def compare_kinds(folder: Path, model: VideoModel, part: str, called: Callable[[str], str]) -> None:
    """Every kind at every strength, with and without magnitudes."""
    path, shapes = folder / "a.safetensors", layers(model.checkpoint.parts[part])
    for layer in LAYERS[part]:
        shape = torch.Size(shapes[layer])
        magnitudes = [{}, *({"dora_scale": magnitude(shape, side)} for side in ("out", "in"))]
        for kind in (KINDS[name] for name in KINDS if known_to_comfyui(name, len(shape))):
            tensors = kind(shape)[0]
            for more, strength in product(magnitudes, STRENGTHS):
                written(path, called(layer), tensors | more)
                assert_as_comfyui(model, part, path, strength, 1)


def case_every_kind_over_linear_layers(folder: Path) -> None:
    compare_kinds(folder, open_model(write_tiny_wan(folder / "ti2v", "ti2v")), "transformer", published)


def case_every_kind_over_convolutions(folder: Path) -> None:
    compare_kinds(folder, open_model(write_tiny_checkpoint(folder / "i2vgen")), "unet", str)


def case_names_of_a_video_unet(folder: Path) -> None:
    """Every tensor of Stable Video Diffusion's UNet, at its published size, has the name that ComfyUI gives it."""
    layers: Any = {"device": "meta", "operations": comfy.ops.disable_weight_init}
    wide = {"channel_mult": [1, 2, 4, 4], "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]}
    theirs = UNetModel(**{**SVD, **wide}, **layers).state_dict()
    with torch.device("meta"):
        ours = UNetSpatioTemporalConditionModel().state_dict()  # its defaults are the published size
    found = {}
    for name, value in ours.items():
        module, _, leaf = name.rpartition(".")
        (published,) = NAMES.published(module)
        found[f"{published}.{leaf}"] = value.shape
    assert found == {name: value.shape for name, value in theirs.items()}


def case_kinds_that_change_a_weight_by_itself(folder: Path) -> None:
    """OFT at full strength alone: ComfyUI's change goes by the square of the strength."""
    model, part, path = open_model(write_tiny_wan(folder / "ti2v", "ti2v")), "transformer", folder / "a.safetensors"
    weights = dict(model.part(part, "fp32").named_parameters())
    for layer, kind in product(LAYERS[part], OVER_WEIGHTS):
        weight = weights[f"{layer}.weight"].detach()
        written(path, published(layer), OVER_WEIGHTS[kind](weight.shape, weight)[0])
        for strength in STRENGTHS[:1] if kind.startswith("oft") else STRENGTHS:
            assert_as_comfyui(model, part, path, strength, 1)


def case_differences_norms_and_values(folder: Path) -> None:
    model = open_model(write_tiny_wan(folder / "wan21", "wan21"))
    parameters = dict(model.part("transformer", "fp32").named_parameters())
    named = {
        "diffusion_model.blocks.0.self_attn.q.diff": "blocks.0.attn1.to_q.weight",
        "diffusion_model.blocks.0.self_attn.k.diff_b": "blocks.0.attn1.to_k.bias",
        "diffusion_model.blocks.0.norm3.w_norm": "blocks.0.norm2.weight",
        "diffusion_model.blocks.0.norm3.b_norm": "blocks.0.norm2.bias",
        "diffusion_model.blocks.1.modulation.diff": "blocks.1.scale_shift_table",
        "diffusion_model.head.modulation.diff": "scale_shift_table",
        "lora_unet_blocks_1_cross_attn_norm_k_img.diff": "blocks.1.attn2.norm_added_k.weight",
    }
    path = folder / "a.safetensors"
    save_file({key: filled(*parameters[name].shape) for key, name in named.items()}, path)
    for strength in STRENGTHS:
        assert_as_comfyui(model, "transformer", path, strength, len(named))
    # ComfyUI sets a value at any strength; the pack goes towards it, so that strength 0 changes nothing.
    like = parameters["blocks.0.attn1.norm_q.weight"]
    save_file({"diffusion_model.blocks.0.self_attn.norm_q.set_weight": filled(*like.shape)}, path)
    assert_as_comfyui(model, "transformer", path, 1.0, 1)


def case_a_picture_encoders_tensors_are_passed_over(folder: Path) -> None:
    model = open_model(write_tiny_wan(folder / "ti2v", "ti2v"))
    linear = {
        name: shape
        for name, shape in layers(model.checkpoint.parts["transformer"]).items()
        if name.startswith("blocks.")
    }
    path = folder / "a.safetensors"
    write_lora(path, linear, PUBLISHED, published)
    more = {
        f"diffusion_model.blocks.0.cross_attn.k_img.{name}.weight": filled(4, 4) for name in ("lora_up", "lora_down")
    }
    save_file(load_file(path) | more, path)
    assert_as_comfyui(model, "transformer", path, 1.0, len(linear))


def case_names_with_backslashes_are_found(folder: Path) -> None:
    place = folder / "loras"
    (place / "wan").mkdir(parents=True)
    (place / "wan" / "style.safetensors").touch()
    (folder / "secret.safetensors").touch()
    folder_paths.add_model_folder_path("loras", str(place))
    write_tiny_wan(folder / "i2v" / "wan" / "tiny", "ti2v")
    folder_paths.add_model_folder_path(folders.MODELS, str(folder / "i2v"))
    for name in ("wan/style.safetensors", "wan\\style.safetensors"):
        assert folders.lora_file(name) == place / "wan" / "style.safetensors"
    for name in ("wan/tiny", "wan\\tiny"):
        assert checkpoints.checkpoint(name) == folder / "i2v" / "wan" / "tiny"
    for name in ("..\\secret.safetensors", "wan\\..\\wan\\style.safetensors", "..\\i2v\\wan\\tiny"):
        for find in (folders.lora_file, checkpoints.checkpoint):
            try:
                found = find(name)
            except Exception as error:
                assert "There is no" in str(error), error
            else:
                raise AssertionError(f"{name} led to {found}")

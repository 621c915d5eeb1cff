"""Adapters of every kind against formulas written out number by number, and files with parts that a model lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.checkpoints import lora_kinds
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan.lora_names import published
from i2v_tensorrt.tests.helpers.lora_kinds import KINDS, OVER_WEIGHTS, RANK, Tensors, filled, magnitude

Wan = Callable[[str], Path]
STRENGTH = 0.75
QUERY = "blocks.0.attn1.to_q"
CONVOLUTION = "down_blocks.0.resnets.0.conv1"


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Where a file is to be written."""
    return tmp_path / "a.safetensors"


@pytest.fixture(params=["linear", "convolution"])
def target(request: pytest.FixtureRequest, tiny_folder: Path, tiny_wan: Wan) -> tuple[VideoModel, str, str]:
    """A model, its part, and a layer in it."""
    if request.param == "linear":
        return open_model(tiny_wan("wan21")), "transformer", QUERY
    return open_model(tiny_folder), "unet", CONVOLUTION


def weight_of(model: VideoModel, part: str, layer: str) -> torch.Tensor:
    return model.part(part, "fp32").get_submodule(layer).get_parameter("weight").detach().double()


def written(path: Path, layer: str, tensors: Mapping[str, torch.Tensor]) -> None:
    save_file({f"lycoris_{layer.replace('.', '_')}.{name}": value for name, value in tensors.items()}, path)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_its_formula(target: tuple[VideoModel, str, str], lora: Path, kind: str) -> None:
    model, part, layer = target
    weight = weight_of(model, part, layer)
    tensors, added = KINDS[kind](weight.shape)
    written(lora, layer, tensors)
    after = weight_of(model.with_adapter(lora, STRENGTH), part, layer)
    torch.testing.assert_close(after, weight + STRENGTH * added.reshape(weight.shape), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", OVER_WEIGHTS)
def test_a_kind_that_changes_a_weight_by_itself_is_its_formula(
    target: tuple[VideoModel, str, str], lora: Path, kind: str
) -> None:
    model, part, layer = target
    weight = weight_of(model, part, layer)
    tensors, added = OVER_WEIGHTS[kind](weight.shape, weight)
    written(lora, layer, tensors)
    after = weight_of(model.with_adapter(lora, STRENGTH), part, layer)
    torch.testing.assert_close(after, weight + STRENGTH * added.reshape(weight.shape), rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("kind", ["lora", "loha", "lokr True factors"])
@pytest.mark.parametrize("side", ["out", "in"])
def test_a_magnitude_scales_the_sum(target: tuple[VideoModel, str, str], lora: Path, kind: str, side: str) -> None:
    model, part, layer = target
    weight = weight_of(model, part, layer)
    tensors, added = KINDS[kind](weight.shape)
    added = added.reshape(weight.shape)
    scales = magnitude(weight.shape, side)
    written(lora, layer, tensors | {"dora_scale": scales})
    after = weight_of(model.with_adapter(lora, STRENGTH), part, layer)
    changed = weight + added
    for number in range(weight.shape[0 if side == "out" else 1]):
        at = (number,) if side == "out" else (slice(None), number)
        norm = (weight if side == "out" else changed)[at].square().sum().sqrt()
        wanted = changed[at] * scales.flatten()[number].double() / norm
        expected = (1 - STRENGTH) * weight[at] + STRENGTH * wanted
        torch.testing.assert_close(after[at], expected, rtol=1e-6, atol=2e-6)


def test_norms_values_and_modulations(tiny_wan: Wan, lora: Path) -> None:
    model = open_model(tiny_wan("wan21"))
    before = dict(model.part("transformer", "fp32").named_parameters())
    named = {
        "diffusion_model.blocks.0.norm3.w_norm": "blocks.0.norm2.weight",
        "diffusion_model.blocks.0.norm3.b_norm": "blocks.0.norm2.bias",
        "diffusion_model.blocks.1.diff_m": "blocks.1.scale_shift_table",
        "lora_unet_blocks_0.diff_m": "blocks.0.scale_shift_table",
        "diffusion_model.head.diff_m": "scale_shift_table",
        "diffusion_model.blocks.0.self_attn.norm_q.set_weight": "blocks.0.attn1.norm_q.weight",
    }
    save_file({key: torch.full_like(before[name], 0.25) for key, name in named.items()}, lora)
    after = dict(model.with_adapter(lora, 1.0).part("transformer", "fp32").named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(named.values())
    for key, name in named.items():
        expected = torch.full_like(before[name], 0.25)
        torch.testing.assert_close(after[name], expected if key.endswith("set_weight") else before[name] + expected)
    nothing = dict(model.with_adapter(lora, 0.0).part("transformer", "fp32").named_parameters())
    assert all(torch.equal(before[name], nothing[name]) for name in before)


@pytest.mark.parametrize(
    "start",
    [
        "lora_unet__",
        "lora_unet_",
        "lycoris_",
        "base_model.model.",
        "unet.base_model.model.",
        "transformer.",
        "base_model.model.diffusion_model.",
        "model.diffusion_model.",
    ],
)
@pytest.mark.parametrize(
    ("down", "up"),
    [
        ("lora_down.weight", "lora_up.weight"),
        ("lora_A", "lora_B"),
        ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
    ],
)
def test_prefixes_and_endings_of_trainers(tiny_wan: Wan, lora: Path, start: str, down: str, up: str) -> None:
    model = open_model(tiny_wan("ti2v"))
    weight = weight_of(model, "transformer", QUERY)
    name = start + (published(QUERY).replace(".", "_") if start.endswith("_") else published(QUERY))
    first, second = filled(len(weight), RANK), filled(RANK, weight.shape[1], seed=1)
    save_file({f"{name}.{up}": first, f"{name}.{down}": second}, lora)
    after = weight_of(model.with_adapter(lora, 1.0), "transformer", QUERY)
    torch.testing.assert_close(after, weight + first.double() @ second.double(), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("start", ["text_encoder.", "text_encoders.umt5xxl.transformer.", "lora_te_", "lora_te__"])
def test_prefixes_of_the_text_encoder(tiny_wan: Wan, lora: Path, start: str) -> None:
    model = open_model(tiny_wan("ti2v"))
    layer = "encoder.block.0.layer.0.SelfAttention.q"
    weight = weight_of(model, "text_encoder", layer)
    name = start + (layer.replace(".", "_") if start.endswith("_") else layer)
    save_file({f"{name}.diff": torch.ones(weight.shape)}, lora)
    torch.testing.assert_close(weight_of(model.with_adapter(lora, 1.0), "text_encoder", layer), weight + 1)


def test_factors_in_fp8_count_as_stored_and_a_scale_beside_them_is_refused(tiny_wan: Wan, lora: Path) -> None:
    model, small = open_model(tiny_wan("ti2v")), torch.float8_e4m3fn
    weight, name = weight_of(model, "transformer", QUERY), f"diffusion_model.{published(QUERY)}"
    up, down = filled(len(weight), RANK).to(small), filled(RANK, weight.shape[1], seed=1).to(small)
    tensors = {f"{name}.lora_up.weight": up, f"{name}.lora_down.weight": down}
    save_file(tensors, lora)
    after = weight_of(model.with_adapter(lora, 1.0), "transformer", QUERY)
    torch.testing.assert_close(after, weight + up.double() @ down.double(), rtol=1e-6, atol=1e-6)
    save_file(tensors | {f"{name}.lora_up.scale_weight": torch.tensor(2.0)}, lora)
    with pytest.raises(CheckpointError, match="lora_up.scale_weight belongs nowhere"):
        model.with_adapter(lora, 1.0)


def test_the_publishers_names_of_a_video_unet(tiny_svd_folder: Path, lora: Path) -> None:
    """As trainers over ComfyUI's and the publishers' files write them; compared with ComfyUI's own in a live one."""
    model = open_model(tiny_svd_folder)
    named = {
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q": (
            "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
        ),
        "lora_unet_input_blocks_1_1_time_stack_0_ff_in_net_2": (
            "down_blocks.0.attentions.0.temporal_transformer_blocks.0.ff_in.net.2"
        ),
    }
    before = dict(model.part("unet", "fp32").named_parameters())
    tensors = {}
    for key, module in named.items():
        out, into = before[f"{module}.weight"].shape
        tensors |= {f"{key}.lora_up.weight": filled(out, RANK), f"{key}.lora_down.weight": filled(RANK, into)}
    save_file(tensors, lora)
    after = dict(model.with_adapter(lora, 1.0).part("unet", "fp32").named_parameters())
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"{module}.weight" for module in named.values()}


def test_diffusers_old_names_of_attention(tiny_svd_folder: Path, lora: Path) -> None:
    model = open_model(tiny_svd_folder)
    layer = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_out.0"
    weight = weight_of(model, "unet", layer)
    name = "unet." + layer.replace(".to_out.0", ".processor.to_out_lora")
    up, down = filled(len(weight), RANK), filled(RANK, weight.shape[1], seed=1)
    save_file({f"{name}.up.weight": up, f"{name}.down.weight": down}, lora)
    after = weight_of(model.with_adapter(lora, 1.0), "unet", layer)
    torch.testing.assert_close(after, weight + up.double() @ down.double(), rtol=1e-6, atol=1e-6)


PICTURE = {
    "published": ("diffusion_model.", ("img_emb.proj.1", "blocks.0.cross_attn.k_img", "blocks.1.cross_attn.v_img")),
    "underscores": ("lora_unet_", ("img_emb_proj_1", "blocks_0_cross_attn_k_img", "blocks_1_cross_attn_v_img")),
    "diffusers": (
        "transformer.",
        ("condition_embedder.image_embedder.ff.net.0.proj", "blocks.0.attn2.add_k_proj", "blocks.1.attn2.add_v_proj"),
    ),
}
NORMS = {
    "published": "cross_attn.norm_k_img",
    "underscores": "cross_attn_norm_k_img",
    "diffusers": "attn2.norm_added_k",
}


def picture_tensors(naming: str) -> Tensors:
    """Seven tensors for what takes a picture encoder's output."""
    start, modules = PICTURE[naming]
    block = start + ("blocks_0_" if naming == "underscores" else "blocks.0.")
    found = {f"{start}{module}.lora_{side}.weight": filled(4, 4) for module in modules for side in ("down", "up")}
    return found | {f"{block}{NORMS[naming]}.diff": filled(4)}


def query_tensors(side: int) -> Tensors:
    name = f"diffusion_model.{published(QUERY)}"
    return {f"{name}.lora_down.weight": filled(RANK, side), f"{name}.lora_up.weight": filled(side, RANK)}


@pytest.mark.parametrize("naming", PICTURE)
@pytest.mark.parametrize("kind", ["a14b", "ti2v"])
def test_what_a_wan_without_a_picture_encoder_lacks_is_left_out(
    tiny_wan: Wan, lora: Path, kind: str, naming: str
) -> None:
    model = open_model(tiny_wan(kind))
    save_file(query_tensors(48) | picture_tensors(naming), lora)
    adapter = model.with_adapter(lora, 1.0).adapters[-1]
    assert {part: [each.parameter for each in changes] for part, changes in adapter.changes.items()} == {
        model.part_of(name): [f"{QUERY}.weight"] for name in model.denoisers
    }
    told = "; 7 tensors for a picture encoder that this model does not have are left out"
    assert adapter.summary.endswith(told)
    with pytest.raises(CheckpointError, match="attn2.to_x.lora_A.weight belongs nowhere"):
        save_file(picture_tensors(naming) | {"transformer.blocks.0.attn2.to_x.lora_A.weight": filled(2, 4)}, lora)
        model.with_adapter(lora, 1.0)
    with pytest.raises(CheckpointError, match="found: nothing but tensors for a picture encoder"):
        save_file(picture_tensors(naming), lora)
        model.with_adapter(lora, 1.0)


def test_a_wan_with_a_picture_encoder_takes_its_tensors_or_refuses_them(tiny_wan: Wan, lora: Path) -> None:
    model = open_model(tiny_wan("wan21"))
    save_file({"diffusion_model.blocks.9.cross_attn.k_img.diff_b": filled(48)} | query_tensors(48), lora)
    with pytest.raises(CheckpointError, match="blocks.9.cross_attn.k_img.diff_b belongs nowhere"):
        model.with_adapter(lora, 1.0)
    save_file({"diffusion_model.blocks.1.cross_attn.k_img.diff_b": filled(48)} | query_tensors(48), lora)
    adapter = model.with_adapter(lora, 1.0).adapters[-1]
    assert not adapter.left_out and len(adapter.changes["transformer"]) == 2


@pytest.mark.parametrize(
    "start", ["text_encoder.", "lora_te_", "lora_te__", "lora_te1_", "lora_te2_", "text_encoder_2."]
)
def test_text_encoder_tensors_are_left_out_where_there_is_none(
    tiny_svd_folder: Path, tiny_wan: Wan, lora: Path, start: str
) -> None:
    layer = "down_blocks.0.resnets.0.spatial_res_block.conv1"
    model = open_model(tiny_svd_folder)
    bias = model.part("unet", "fp32").get_submodule(layer).get_parameter("bias")
    text = f"{start}text_model_encoder_layers_0_mlp_fc1.alpha"
    save_file({f"unet.{layer}.diff_b": torch.ones_like(bias), text: torch.tensor(1.0)}, lora)
    adapter = model.with_adapter(lora, 1.0).adapters[-1]
    told = "1 tensors of unet; 1 tensor for a text encoder that this model does not have is left out"
    assert adapter.summary.endswith(told)
    if "2" not in start:
        save_file(query_tensors(48) | {text: torch.tensor(1.0)}, lora)
        with pytest.raises(CheckpointError, match="mlp_fc1.alpha belongs nowhere"):
            open_model(tiny_wan("ti2v")).with_adapter(lora, 1.0)


@pytest.mark.parametrize(
    ("ending", "kind"),
    [
        ("rescale", "OFT with a rescale"),
        ("oft_R.default.weight", "OFT of PEFT"),
        ("on_input", "IA3"),
        ("lora_magnitude_vector", "DoRA of PEFT"),
        ("lora_magnitude_vector.default.weight", "DoRA of PEFT"),
        ("reshape_weight", "LoRA that widens its layers"),
    ],
)
def test_other_kinds_are_refused_by_their_names(tiny_wan: Wan, lora: Path, ending: str, kind: str) -> None:
    save_file(query_tensors(48) | {f"diffusion_model.{published(QUERY)}.{ending}": filled(4)}, lora)
    with pytest.raises(CheckpointError, match=f"a.safetensors is of the kind {kind}, which is not merged"):
        open_model(tiny_wan("ti2v")).with_adapter(lora, 1.0)


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        ({"hada_w1_a": (48, 2), "hada_w1_b": (2, 48), "hada_w2_a": (48, 2)}, "alone"),
        ({"hada_w1_a": (48, 2), "hada_w1_b": (2, 48), "hada_w2_a": (48, 2), "hada_w2_b": (2, 1)}, r"\[2, 1\]"),
        ({"lokr_w1": (2, 2)}, "alone"),
        ({"lokr_w1": (2, 2), "lokr_w2": (24, 23)}, r"found \[48, 46\]"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (24, 2), "lokr_w2_b": (3, 24)}, r"\[24, 2\] and \[3, 24\]"),
        ({"lokr_w1": (2, 2), "lokr_w2_a": (2, 24), "lokr_w2_b": (1, 24), "lokr_t2": (2, 2, 1)}, r"\[2, 2, 1\]"),
        ({"lokr_w1": (2, 2), "lokr_w2": (24, 24), "lora_mid.weight": (2, 2)}, "alone"),
        ({"lokr_w1": (2, 2), "lokr_w2": (24, 24), "dora_scale": ()}, r"found \[\]"),
        ({"lokr_w1": (2, 2), "lokr_w2": (24, 24), "dora_scale": (1, 47)}, r"found \[1, 47\]"),
        ({"dora_scale": (48, 1), "diff": (48, 48)}, "alone"),
        ({"set_weight": (48, 48), "diff": (48, 48)}, "alone"),
        ({"set_weight": (48, 48), "lora_up.weight": (48, 2), "lora_down.weight": (2, 48)}, "alone"),
        ({"set_weight": (48, 47)}, r"found \[48, 47\]"),
        ({"a1.weight": (48, 2), "a2.weight": (2, 48), "b1.weight": (48, 2)}, "alone"),
        ({"a1.weight": (48, 2), "a2.weight": (2, 47), "b1.weight": (48, 2), "b2.weight": (2, 48)}, r"\[2, 47\]"),
        ({"oft_blocks": (2, 23, 23)}, r"\[2, 23, 23\]"),
        ({"oft_blocks": (2, 24, 23)}, r"\[2, 24, 23\]"),
        ({"oft_blocks": (2, 24)}, r"\[2, 24\]"),
    ],
)
def test_factors_that_do_not_multiply_are_refused(
    tiny_wan: Wan, lora: Path, tensors: Mapping[str, tuple[int, ...]], sentence: str
) -> None:
    save_file({f"transformer.{QUERY}.{name}": torch.ones(shape) for name, shape in tensors.items()}, lora)
    with pytest.raises(CheckpointError, match=sentence):
        open_model(tiny_wan("wan21")).with_adapter(lora, 1.0)


SIZES = st.sampled_from([0, 1, 2, 3, 4, 6])
SHAPES = st.lists(SIZES, max_size=5).map(tuple)
ROLES = st.sampled_from(sorted({*(factor for kind in lora_kinds.KINDS for factor in kind.factors), *lora_kinds.BESIDE}))


@given(st.sampled_from(lora_kinds.KINDS), st.dictionaries(ROLES, SHAPES, max_size=2), st.data())
@settings(max_examples=300, deadline=None)
def test_what_is_accepted_can_be_merged(kind: lora_kinds.Kind, more: dict[str, tuple[int, ...]], data: Any) -> None:
    shapes = {**{factor: data.draw(SHAPES) for factor in kind.factors}, **more}
    wanted = data.draw(SHAPES)
    if lora_kinds.violation(shapes, wanted) is None:
        tensors = {role: torch.ones(shape) for role, shape in shapes.items()}
        assert lora_kinds.merged(torch.ones(wanted), tensors, STRENGTH).shape == wanted

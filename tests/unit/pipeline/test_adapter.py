"""LoRA files: whatever names they use, what they say is what the weights become, or they are refused."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.loaders.lora_pipeline import WanLoraLoaderMixin
from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers
from safetensors.torch import load_file, save_file

from i2v_tensorrt.common.errors import CheckpointError, I2VError
from i2v_tensorrt.common.spec import PRECISIONS
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.pipeline.dummies.wan import KINDS
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import tensor_shapes
from i2v_tensorrt.pipeline.models.checkpoints.lora import _Places
from i2v_tensorrt.pipeline.models.checkpoints.lora_tensor_names import plain_name
from i2v_tensorrt.pipeline.models.registry import FAMILIES, open_model
from i2v_tensorrt.pipeline.models.wan.lora_names import published
from i2v_tensorrt.tests.helpers.loras import (
    DIFFUSERS,
    KOHYA,
    PEFT,
    PLAIN,
    PUBLISHED,
    UNET,
    Style,
    layers,
    weights,
    write_lora,
)

Wan = Callable[[str], Path]
QUERY = "blocks.0.attn1.to_q"


@pytest.fixture
def wan(tiny_wan: Wan) -> VideoModel:
    return open_model(tiny_wan("wan21"))


@pytest.fixture
def i2vgen(tiny_folder: Path) -> VideoModel:
    return open_model(tiny_folder)


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """Where a file is to be written."""
    return tmp_path / "a.safetensors"


def assert_added(
    models: tuple[VideoModel, VideoModel], part: str, added: Mapping[str, torch.Tensor], strength: float = 1.0
) -> None:
    """The second model's weights are the first one's and what a file adds."""
    before, after = (weights(each.part(part, "fp32"), added) for each in models)
    for name in added:
        torch.testing.assert_close(after[name], before[name] + strength * added[name], rtol=1e-6, atol=1e-6)


def blocks(model: VideoModel, part: str = "transformer") -> dict[str, tuple[int, ...]]:
    """The layers that LoRAs for Wan change."""
    return {name: shape for name, shape in layers(model.checkpoint.parts[part]).items() if name.startswith("blocks.")}


@pytest.mark.parametrize(
    ("style", "called"),
    [(DIFFUSERS, str), (PEFT, str), (PLAIN, str), (PUBLISHED, published), (KOHYA, published), (KOHYA, str)],
)
def test_every_naming_adds_what_the_file_says(
    wan: VideoModel, lora: Path, style: Style, called: Callable[[str], str]
) -> None:
    sums = write_lora(lora, blocks(wan), style, called)
    assert len(sums) >= 20
    assert_added((wan, wan.with_adapter(lora, 0.75)), "transformer", sums, 0.75)


@pytest.mark.parametrize("style", [UNET, KOHYA])
def test_convolutions_over_space_and_time_and_the_text_encoder(
    i2vgen: VideoModel, tmp_path: Path, lora: Path, style: Style
) -> None:
    unet = layers(i2vgen.checkpoint.parts["unet"])
    text = {
        name: shape for name, shape in layers(i2vgen.checkpoint.parts["text_encoder"]).items() if ".layers." in name
    }
    texts = replace(style, prefix="lora_te_" if style.underscores else "text_encoder.")
    sums = write_lora(tmp_path / "unet.safetensors", unet, style)
    text_sums = write_lora(tmp_path / "text.safetensors", text, texts)
    save_file(load_file(tmp_path / "unet.safetensors") | load_file(tmp_path / "text.safetensors"), lora)
    model = i2vgen.with_adapter(lora, -1.0)
    assert {len(shape) for shape in unet.values()} == {2, 4, 5}
    for part, added in (("unet", sums), ("text_encoder", text_sums)):
        networks = [each.part(part, "fp32") for each in (i2vgen, model)]
        here = {name: name if has(networks[0], name) else name.removeprefix("text_model.") for name in added}
        before, after = (weights(network, here.values()) for network in networks)
        for name, place in here.items():
            torch.testing.assert_close(after[place], before[place] - added[name], rtol=1e-6, atol=1e-6)


def has(network: torch.nn.Module, module: str) -> bool:
    return any(name == module for name, _ in network.named_modules())


def test_the_publishers_names_are_those_that_diffusers_reads(tiny_wan: Wan) -> None:
    for kind in KINDS:
        for name in tensor_shapes(open_model(tiny_wan(kind)).checkpoint.parts["transformer"].weights[""]):
            module, _, leaf = name.rpartition(".")
            theirs = published(name) if leaf == "scale_shift_table" else f"{published(module)}.{leaf}"
            assert list(convert_wan_transformer_to_diffusers({theirs: torch.zeros(1)})) == [name]


def test_a_published_lora_is_what_diffusers_makes_of_it(wan: VideoModel, lora: Path) -> None:
    # Without the layers over the picture, whose alphas diffusers reads from the wrong place.
    chosen = {name: shape for name, shape in blocks(wan).items() if "add_" not in name}
    write_lora(lora, chosen, PUBLISHED, published)
    theirs = WanLoraLoaderMixin.lora_state_dict(load_file(lora))
    assert isinstance(theirs, dict)
    before = weights(wan.part("transformer", "fp32"), chosen)
    after = weights(wan.with_adapter(lora, 1.0).part("transformer", "fp32"), chosen)
    for name in chosen:
        up, down = (theirs[f"transformer.{name}.lora_{side}.weight"].double() for side in "BA")
        torch.testing.assert_close(after[name] - before[name], up @ down, rtol=1e-5, atol=1e-6)


def test_differences_of_weights_biases_norms_and_modulations(wan: VideoModel, lora: Path) -> None:
    parameters = dict(wan.part("transformer", "fp32").named_parameters())
    added = {
        f"diffusion_model.{published(QUERY)}.diff_b": f"{QUERY}.bias",
        f"diffusion_model.{published('blocks.1.attn2.norm_added_k')}.diff": "blocks.1.attn2.norm_added_k.weight",
        "diffusion_model.blocks.1.modulation.diff": "blocks.1.scale_shift_table",
        "diffusion_model.head.modulation.diff": "scale_shift_table",
        "transformer.proj_out.lora_B.bias": "proj_out.bias",
    }
    save_file({key: torch.full_like(parameters[name], 0.5) for key, name in added.items()}, lora)
    after = dict(wan.with_adapter(lora, 2.0).part("transformer", "fp32").named_parameters())
    changed = {name for name in parameters if not torch.equal(parameters[name], after[name])}
    assert changed == set(added.values())
    for name in changed:
        torch.testing.assert_close(after[name], parameters[name] + 1.0)


def test_off_again_and_at_nothing_the_weights_are_what_they_were(wan: VideoModel, lora: Path) -> None:
    write_lora(lora, blocks(wan), PUBLISHED, published, dtype=torch.bfloat16)
    before = {name: value.clone() for name, value in wan.part("transformer", "bf16").state_dict().items()}
    changed = wan.with_adapter(lora, 1.0).part("transformer", "bf16").state_dict()
    assert any(not torch.equal(before[name], changed[name]) for name in before)
    for model in (wan, wan.with_adapter(lora, 0.0)):
        now = model.part("transformer", "bf16").state_dict()
        assert all(torch.equal(before[name], now[name]) for name in before)


def test_two_loras_add_up(wan: VideoModel, tmp_path: Path) -> None:
    one, other = (write_lora(tmp_path / f"{seed}.safetensors", blocks(wan), DIFFUSERS, seed=seed) for seed in (1, 2))
    both = wan.with_adapter(tmp_path / "1.safetensors", 0.5).with_adapter(tmp_path / "2.safetensors", -2.0)
    assert_added((wan, both), "transformer", {name: 0.5 * one[name] - 2.0 * other[name] for name in one})


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("kind", "part"), [("wan21", "transformer"), ("i2vgen", "unet")])
def test_in_half_precision_a_merged_weight_is_rounded_once(
    tiny_folder: Path, tiny_wan: Wan, tmp_path: Path, kind: str, part: str, stored: str, precision: str
) -> None:
    """Both ways of loading a part; LoRAs whose sums are exact, so that nothing but the weights is rounded."""
    folder = shutil.copytree(tiny_folder if kind == "i2vgen" else tiny_wan(kind), tmp_path / "model")
    (file,) = (folder / part).glob("*.safetensors")
    values = {name: tensor.to(getattr(torch, stored)) for name, tensor in load_file(file).items()}
    save_file(values, file, {"format": "pt"})
    model, chosen = open_model(folder), layers(open_model(folder).checkpoint.parts[part])
    for number in range(2):
        exact_lora(tmp_path / f"{number}.safetensors", chosen, number)
        model = model.with_adapter(tmp_path / f"{number}.safetensors", 0.5)
    sums = [load_file(tmp_path / f"{number}.sums") for number in range(2)]
    merged, differ = dict(model.part(part, precision).named_parameters()), 0
    half = {name for name in chosen if merged[f"{name}.weight"].dtype == getattr(torch, PRECISIONS[precision])}
    assert len(half) > len(chosen) / 2, "some layers stay in fp32"
    for name in chosen:
        value, dtype = values[f"{name}.weight"], merged[f"{name}.weight"].dtype
        once = (value.float() + sums[0][name] + sums[1][name]).to(dtype)
        assert torch.equal(merged[f"{name}.weight"], once)
        rounded = value.to(dtype)
        for number in range(2):
            rounded = (rounded.float() + sums[number][name]).to(dtype)
        differ += not torch.equal(rounded, once)
    assert differ > 0, "these weights would tell"


def exact_lora(path: Path, modules: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """Writes a LoRA of powers of two, and beside it what it adds at half its strength."""
    generator, tensors, sums = torch.Generator().manual_seed(seed), {}, {}
    for module, (out, *rest) in modules.items():
        down = 2.0 ** torch.randint(-7, -3, (1, *rest), generator=generator)
        up = 2.0 ** torch.randint(-4, 0, (out, 1, *[1] * (len(rest) - 1)), generator=generator)
        tensors |= {f"{module}.lora_A.weight": down, f"{module}.lora_B.weight": up}
        sums[module] = (up * down * 0.5).contiguous()
    save_file(tensors, path)
    save_file(sums, path.with_suffix(".sums"))


@pytest.mark.parametrize(
    ("denoisers", "changed"),
    [((), {"transformer", "transformer_2"}), (("core",), {"transformer"}), (("core_late",), {"transformer_2"})],
)
def test_each_expert_gets_what_is_for_it(
    tiny_wan: Wan, lora: Path, denoisers: tuple[str, ...], changed: set[str]
) -> None:
    model = open_model(tiny_wan("a14b"))
    sums = write_lora(lora, blocks(model), PUBLISHED, published)
    adapted = model.with_adapter(lora, 1.0, denoisers)
    for part in ("transformer", "transformer_2"):
        before, after = (weights(each.part(part, "fp32"), sums) for each in (model, adapted))
        moved = [name for name in sums if not torch.equal(before[name], after[name])]
        assert moved == (list(sums) if part in changed else [])


def test_a_file_for_both_experts_keeps_them_apart(tiny_wan: Wan, tmp_path: Path, lora: Path) -> None:
    model = open_model(tiny_wan("a14b"))
    sums = {}
    for number, part in enumerate(("transformer", "transformer_2")):
        style = Style(f"{part}.", DIFFUSERS.down, DIFFUSERS.up)
        sums[part] = write_lora(tmp_path / f"{part}.safetensors", blocks(model), style, seed=number)
    save_file(
        load_file(tmp_path / "transformer.safetensors") | load_file(tmp_path / "transformer_2.safetensors"),
        lora,
    )
    adapted = model.with_adapter(lora, 1.0)
    for part, added in sums.items():
        assert_added((model, adapted), part, added)
    with pytest.raises(CheckpointError, match="to fit transformer or text_encoder, found: transformer_2"):
        model.with_adapter(lora, 1.0, ("core",))


def test_digests_follow_what_is_merged_and_nothing_else(wan: VideoModel, tmp_path: Path) -> None:
    """An engine without weights serves every LoRA."""
    write_lora(tmp_path / "a.safetensors", blocks(wan), DIFFUSERS)
    write_lora(tmp_path / "b.safetensors", blocks(wan), DIFFUSERS, seed=1)
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    models = [wan, *(wan.with_adapter(file, strength) for file in files for strength in (1.0, 0.5))]
    specs = [model.components["core"].spec for model in models]
    assert len({spec.weights_sha256 for spec in specs}) == len(models)
    assert wan.with_adapter(files[0], 1).components["core"].spec.weights_sha256 == specs[1].weights_sha256
    for model in models:
        assert model.encode_sha256 == wan.encode_sha256
        assert model.components["text_encoder"].spec == wan.components["text_encoder"].spec
        assert model.part("vae", "fp32") is wan.part("vae", "fp32")
    for name, is_shared in (("inductor", True), ("onnxruntime", False), ("tensorrt", True)):
        one, other = (BACKENDS[name].network_of(spec, BACKENDS[name].weights[0]) for spec in specs[:2])
        assert (one == other) is is_shared


def test_a_process_that_builds_gets_the_same_weights(tiny_wan: Wan, lora: Path) -> None:
    model = open_model(tiny_wan("a14b"))
    write_lora(lora, blocks(model), PUBLISHED, published)
    adapted = model.with_adapter(lora, 0.5, ("core_late",)).with_adapter(lora, 1.5)
    for component in model.denoisers:
        here, there = adapted.load(component, "fp32"), adapted.source(component, "fp32").load()
        assert all(torch.equal(value, there.state_dict()[name]) for name, value in here.state_dict().items())


def test_no_two_modules_of_a_network_share_a_name(
    tiny_folder: Path, tiny_svd_folder: Path, tiny_wan: Wan, tiny_dynamicrafter: Wan
) -> None:
    crafters = [tiny_dynamicrafter(kind) for kind in ("512", "interp", "tooncrafter")]
    models = [open_model(folder) for folder in (tiny_folder, tiny_svd_folder, *map(tiny_wan, KINDS), *crafters)]
    assert {type(model) for model in models} == {*FAMILIES}
    for model in models:
        for denoiser in model.denoisers:
            part = model.checkpoint.parts[model.part_of(denoiser)]
            modules = {re.sub(r"\.(weight|bias)$", "", name) for name in _Places(part, model.lora_names).shapes}
            names = [
                name for module in modules for name in {plain_name(module), *map(plain_name, model.lora_names(module))}
            ]
            assert len(names) == len(set(names))


def key(name: str) -> str:
    return f"transformer.{QUERY}.{name}"


SIDE = 48
DOWN, UP = torch.ones(2, SIDE), torch.ones(SIDE, 2)
GOOD = {key("lora_A.weight"): DOWN, key("lora_B.weight"): UP}


@pytest.mark.parametrize(
    ("tensors", "sentence"),
    [
        (GOOD | {"transformer.blocks.9.attn1.to_q.lora_A.weight": DOWN}, "blocks.9.attn1.to_q.lora_A.weight belongs"),
        (GOOD | {key("dora_scale"): UP}, r"to_q.weight takes \[48, 48\], found \[48, 2\]"),
        (GOOD | {key("hada_w1_a"): UP}, "to_q.weight has transformer.blocks.0.attn1.to_q.hada_w1_a, .* alone"),
        (GOOD | {"text_encoder.layers.0.q.lora_A.weight": DOWN}, "text_encoder.layers.0.q.lora_A.weight belongs"),
        (GOOD | {f"diffusion_model.{published(QUERY)}.lora_down.weight": DOWN}, "belongs nowhere"),
        (GOOD | {key("diff"): torch.ones(SIDE, 3)}, r"to_q.weight takes \[48, 48\], found \[48, 3\]"),
        (GOOD | {key("alpha"): torch.ones(2)}, r"to_q.weight takes \[48, 48\], found \[2\]"),
        ({key("lora_A.weight"): DOWN}, "to_q.weight has transformer.blocks.0.attn1.to_q.lora_A.weight alone"),
        ({key("alpha"): torch.ones(1)}, "alone"),
        ({key("lora_A.weight"): DOWN, key("lora_B.weight"): torch.ones(SIDE, 3)}, r"takes \[48, 48\], found \[48, 3\]"),
        ({key("lora_A.weight"): torch.ones(2), key("lora_B.weight"): UP}, r"takes \[48, 48\], found \[48, 2\]"),
        ({key("lora_A.weight"): torch.ones(2, 7), key("lora_B.weight"): UP}, r"takes \[48, 48\], found \[48, 7\]"),
        ({f"unknown.{number}": DOWN for number in range(5)}, "and 2 more"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    wan: VideoModel, lora: Path, tensors: Mapping[str, torch.Tensor], sentence: str
) -> None:
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, lora)
    with pytest.raises(CheckpointError, match=sentence):
        wan.with_adapter(lora, 1.0)


@pytest.mark.parametrize("content", [b"", b"\x80\x04\x95", b"\xff" * 64, None])
def test_what_is_no_safetensors_file_is_refused(wan: VideoModel, lora: Path, content: bytes | None) -> None:
    if content is not None:
        lora.write_bytes(content)
    with pytest.raises(CheckpointError, match=re.escape(str(lora))):
        wan.with_adapter(lora, 1.0)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), 101, -101, True, "1", None])
def test_a_strength_is_a_number_in_reach(wan: VideoModel, lora: Path, strength: Any) -> None:
    save_file(GOOD, lora)
    with pytest.raises(I2VError, match="The strength of a LoRA is a number from -100 to 100, found"):
        wan.with_adapter(lora, strength)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e4])
def test_weights_stay_finite(wan: VideoModel, lora: Path, value: float) -> None:
    save_file({name: tensor * value for name, tensor in GOOD.items()}, lora)
    with pytest.raises(CheckpointError, match=f"to leave finite numbers, found others in {QUERY}.weight"):
        wan.with_adapter(lora, 1.0).part("transformer", "fp16")


def test_an_unknown_expert_and_a_file_that_has_gone_since_are_told(wan: VideoModel, lora: Path) -> None:
    save_file(GOOD, lora)
    with pytest.raises(I2VError, match="Wan 2.1 runs core at its steps, found core_late"):
        wan.with_adapter(lora, 1.0, ("core_late",))
    model = wan.with_adapter(lora, 1.0)
    lora.unlink()
    with pytest.raises(CheckpointError, match="cannot be read any more"):
        model.part("transformer", "fp32")

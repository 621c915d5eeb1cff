"""DynamiCrafter: its published size, its conditioning and what is kept of it, its refusals in a sentence."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.errors import CheckpointError, InputError
from i2v_tensorrt.common.spec import PRECISIONS, EngineSpec
from i2v_tensorrt.engine_builder.graph.fp32_fallback import apply_fp32_fallback
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.conditioning import condition, conditioning_key
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Checkpoint, Part
from i2v_tensorrt.pipeline.models.dynamicrafter.model import LOOP, NO_LAST, DynamiCrafter, DynamiCrafterInterpolation
from i2v_tensorrt.pipeline.models.dynamicrafter.networks import TRIMMED_LAYERS, text_encoder
from i2v_tensorrt.pipeline.models.dynamicrafter.tooncrafter_model import ToonCrafter
from i2v_tensorrt.pipeline.models.parts import own_class
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.tokenizers import tokenize
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache
from i2v_tensorrt.runtime.clip_sizes import check_size
from i2v_tensorrt.runtime.engines import catalog
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from .conftest import Networks, assert_taken_by_the_core, edit_json

TEAL, TAN = (Image.new("RGB", (90, 60), name) for name in ("teal", "tan"))
REQUEST = ClipRequest(TEAL, "a boat", "", 64, 128, 16, 24)
Open = Callable[[str], Networks]


@pytest.fixture(scope="module")
def opened(tiny_dynamicrafter: Callable[[str], Path]) -> Open:
    """A tiny model by its kind, and its networks."""

    def load(kind: str) -> Networks:
        model = open_model(tiny_dynamicrafter(kind))
        return Networks(model, {name: model.load(name, "fp32") for name in model.components})

    return load


def conditioned(run: Networks, request: ClipRequest = REQUEST, cache: ConditioningCache | None = None) -> Any:
    return condition(run.model, request, "fp32", run, cache or ConditioningCache(None), lambda *_: None)


def test_the_index_says_which_it_is(tiny_dynamicrafter: Callable[[str], Path]) -> None:
    assert type(open_model(tiny_dynamicrafter("1024"))) is DynamiCrafter
    assert type(open_model(tiny_dynamicrafter("interp"))) is DynamiCrafterInterpolation
    assert type(open_model(tiny_dynamicrafter("tooncrafter"))) is ToonCrafter


@pytest.mark.parametrize("kind", ["512", "interp", "tooncrafter"])
def test_what_comes_out_is_what_the_core_takes(opened: Open, kind: str) -> None:
    run = opened(kind)
    found = conditioned(run).tensors
    assert_taken_by_the_core(run.model, found, {"batch": 2, "frames": 16, "latent_height": 16, "latent_width": 8})
    assert not torch.equal(*found["image_tokens"]), "the unconditional branch sees grey"


def test_the_picture_is_at_every_frame_or_at_the_ends(opened: Open) -> None:
    everywhere = conditioned(opened("512")).tensors["image_latents"][0]
    assert all(torch.equal(frame, everywhere[0]) for frame in everywhere)
    ends = conditioned(opened("interp"), replace(REQUEST, last_picture=TAN)).tensors["image_latents"][0]
    assert not ends[1:-1].any() and ends[0].any() and ends[-1].any()
    assert not torch.equal(ends[0], ends[-1])


def test_without_a_last_picture_it_is_a_loop(opened: Open) -> None:
    alone, twice = (conditioned(opened("interp"), replace(REQUEST, last_picture=last)) for last in (None, TEAL))
    assert alone.notes == (LOOP,) and twice.notes == ()
    assert all(torch.equal(alone.tensors[name], twice.tensors[name]) for name in alone.tensors)


def test_a_last_picture_that_is_of_no_use_is_told_and_changes_nothing(opened: Open) -> None:
    run, cache = opened("512"), ConditioningCache(None)
    without, told = (conditioned(run, replace(REQUEST, last_picture=last), cache) for last in (None, TAN))
    assert (without.notes, told.notes, told.place) == ((), (NO_LAST,), "memory")


@pytest.mark.parametrize("kind", ["i2vgen_xl", "svd", "wan21", "a14b", "ti2v"])
def test_families_that_cannot_end_in_a_picture_say_so(
    tiny_folder: Path, tiny_svd_folder: Path, tiny_wan: Any, kind: str
) -> None:
    folders = {"i2vgen_xl": tiny_folder, "svd": tiny_svd_folder}
    model = open_model(folders[kind] if kind in folders else tiny_wan(kind))
    assert model.unused["last_picture"].endswith(" does not end in a given picture: last_picture is not used.")
    with_last = replace(REQUEST, last_picture=TAN)
    assert conditioning_key(model, with_last, "fp32") == conditioning_key(model, REQUEST, "fp32")


def test_the_key_changes_with_the_last_picture(opened: Open) -> None:
    model = opened("interp").model
    pictures = (None, TEAL, TAN, TAN.rotate(90, expand=True))
    assert len({conditioning_key(model, replace(REQUEST, last_picture=last), "fp32") for last in pictures}) == 4


def test_a_last_picture_is_rgb_too(opened: Open) -> None:
    with pytest.raises(InputError, match="Expected a picture in RGB, found L"):
        conditioned(opened("interp"), replace(REQUEST, last_picture=TAN.convert("L")))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"width": 96}, "Width is a multiple of 64 for DynamiCrafter, found 96: the nearest is 128."),
        ({"height": 72}, "Height is a multiple of 64 for DynamiCrafter, found 72: the nearest is 64."),
        ({"num_frames": 17}, "DynamiCrafter makes exactly 16 frames, found 17: the nearest is 16."),
        ({"num_frames": 8}, "DynamiCrafter makes exactly 16 frames, found 8: the nearest is 16."),
    ],
)
def test_other_sizes_are_refused_with_the_nearest(opened: Open, change: dict[str, int], sentence: str) -> None:
    with pytest.raises(InputError) as error:
        check_size(opened("512").model, replace(REQUEST, **change).size)
    assert str(error.value) == sentence


def test_prompts_are_padded_as_openclip_does(tiny_dynamicrafter: Callable[[str], Path]) -> None:
    """With 0, whatever the tokenizer's files say: padded otherwise the text's states are others."""
    tokenizer = open_model(tiny_dynamicrafter("512")).checkpoint.parts["tokenizer"]
    (ids, counts), (usual, _) = (tokenize(tokenizer, ["a boat"], 77, pad) for pad in (0, None))
    assert ids[0, counts[0] :].tolist() == [0] * (77 - counts[0])
    assert torch.equal(ids[0, : counts[0]], usual[0, : counts[0]]) and usual[0, counts[0] :].unique().numel() == 1
    assert usual[0, -1] != 0


@pytest.mark.parametrize(("layers", "used"), [(TRIMMED_LAYERS, TRIMMED_LAYERS), (TRIMMED_LAYERS + 1, TRIMMED_LAYERS)])
def test_the_last_layer_of_the_text_model_is_left_out_once(layers: int, used: int) -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 1, "vocab_size": 16}
    with torch.device("meta"):
        network = text_encoder(CLIPTextModel(CLIPTextConfig(**sizes, num_hidden_layers=layers)))
    assert sum(name.endswith("layer_norm1.weight") for name, _ in network.named_parameters()) == used


@pytest.mark.parametrize(
    ("part", "name", "value", "words"),
    [
        ("image_projection", "embed_dims", 48, "expected embed_dims to be 32, found 48"),
        ("image_projection", "num_queries", 33, "expected num_queries to be 32, found 33"),
        ("unet", "cross_attention_dim", 48, "expected output_dims to be 48, found 32"),
        ("unet", "in_channels", 4, "expected in_channels to be 8, found 4"),
        ("vae", "scaling_factor", None, "expected scaling_factor to be a number above 0"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(
    tiny_dynamicrafter: Callable[[str], Path], tmp_path: Path, part: str, name: str, value: object, words: str
) -> None:
    folder = shutil.copytree(tiny_dynamicrafter("512"), tmp_path / "model")
    edit_json(folder / part / "config.json", **{name: value})
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


# The published size, without a weight.

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {"in_channels": 8, "cross_attention_dim": 1024, "block_out_channels": [320, 640, 1280, 1280]},
    "image_projection": {"embed_dims": 1280, "output_dims": 1024, "num_queries": 256},
    "vae": {"scaling_factor": 0.18215},
    "text_encoder": {"max_position_embeddings": 77, "vocab_size": 49408},
    "image_encoder": {"image_size": 224, "patch_size": 14, "hidden_size": 1280},
    "tokenizer": {},
    "scheduler": {},
}
KINDS = {"unet": "DynamiCrafterUNet", "image_projection": "DynamiCrafterImageProjection"}
SIZES = {"batch": 2, "frames": 16, "latent_height": 72, "latent_width": 128}


class Weightless(DynamiCrafter):
    """The family with networks on the meta device."""

    def part(self, name: str, precision: str) -> Any:
        with torch.device("meta"):
            return own_class(KINDS[name])(**CONFIGS[name])


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> DynamiCrafter:
    folder = tmp_path_factory.mktemp("nothing")
    parts: Mapping[str, Part] = {name: Part(name, folder / name, config, {}) for name, config in CONFIGS.items()}
    return Weightless(Checkpoint(folder, parts))


@pytest.mark.parametrize(
    ("part", "tensors", "parameters"), [("unet", 1516, 1_438_854_980), ("image_projection", 51 + 4, 48_787_456)]
)
def test_the_published_networks_have_as_many_weights(
    published: DynamiCrafter, part: str, tensors: int, parameters: int
) -> None:
    """The projection's keys and values are one tensor in the published files, for each of four layers."""
    found = dict(published.part(part, "fp32").named_parameters())
    assert (len(found), sum(each.numel() for each in found.values())) == (tensors, parameters)


@pytest.mark.parametrize("component", ["image_projection", "core"])
def test_declared_shapes_are_what_the_published_network_gives(published: DynamiCrafter, component: str) -> None:
    spec = published.components[component].spec
    inputs = {tensor.name: torch.zeros(tensor.shape_at(SIZES), device="meta") for tensor in spec.inputs}
    assert spec.limits.fits(spec.sizes_of(inputs))
    (output,) = spec.outputs
    assert tuple(published.load(component, "fp32")(**inputs).shape) == output.shape_at(SIZES)


def test_sizes_that_an_engine_of_the_core_may_serve(published: DynamiCrafter) -> None:
    limits = published.components["core"].spec.limits
    assert limits.violations({**SIZES, "latent_width": 124}) == ["latent_width is 124, 4 more than a multiple of 8"]
    assert limits.violations({**SIZES, "frames": 17}) == ["frames is 17, 1 above the largest supported 16"]


# Precision.


@pytest.mark.parametrize(
    ("precision", "bf16", "core", "vae"),
    [("fp32", True, "fp32", "fp32"), ("fp16", True, "fp16", "bf16"), ("fp16", False, "fp16", "fp32")],
)
def test_the_vae_never_runs_in_fp16(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, bf16: bool, core: str, vae: str
) -> None:
    monkeypatch.setattr(catalog, "has_bf16", lambda device: bf16)
    model = opened("512").model
    engines = EngineSet(model, EngineStore(tmp_path), EnginePolicy("eager", precision), torch.device("cpu"))
    latents = {"latents": torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))}
    assert engines.run("vae_decoder", latents)["image"].dtype == getattr(torch, PRECISIONS[vae])
    assert engines.describe("vae_decoder") == f"eager, {vae} on cpu"
    assert engines.describe("core") == f"not run yet, {core} on cpu"
    assert [engines.catalog.precision_of(name) for name in ("core", "vae_decoder", "vae_encoder")] == [core, vae, vae]


def test_every_norm_of_the_core_is_declared_fp32(opened: Open) -> None:
    """As the manifest of an engine in fp16 names them."""
    model = opened("512").model
    spec = model.components["core"].spec
    network = model.load("core", "fp16")
    named = apply_fp32_fallback(network, EngineSpec(spec, spec.limits, "fp16"))
    assert named[:2] == ("every GroupNorm", "every LayerNorm")
    norms = [module for module in network.modules() if isinstance(module, torch.nn.GroupNorm | torch.nn.LayerNorm)]
    assert len(norms) > 200 and {norm.weight.dtype for norm in norms} == {torch.float32}
    others = {name: each.dtype for name, each in network.named_parameters() if "norm" not in name and each.ndim > 1}
    assert torch.float16 in set(others.values())


# LoRAs.


@pytest.mark.parametrize(
    ("module", "names"),
    [
        ("conv_in", ("input_blocks.0.0",)),
        ("transformer_in.proj_in", ("init_attn.0.proj_in",)),
        ("fps_embedding.linear_2", ("fps_embedding.2", "framestride_embed.2")),
        ("down_blocks.1.attentions.0.proj_in", ("input_blocks.4.1.proj_in",)),
        ("down_blocks.0.downsamplers.0.conv", ("input_blocks.3.0.op",)),
        ("mid_block.resnets.1.conv1", ("middle_block.3.in_layers.2",)),
        ("mid_block.temp_attentions.0.proj_out", ("middle_block.2.proj_out",)),
        ("up_blocks.0.upsamplers.0.conv", ("output_blocks.2.1.conv",)),
        ("up_blocks.1.upsamplers.0.conv", ("output_blocks.5.3.conv",)),
        ("up_blocks.3.temp_convs.2.conv4.3", ("output_blocks.11.0.temopral_conv.conv4.3",)),
        ("no.such.module", ()),
    ],
)
def test_loras_may_name_modules_as_published(opened: Open, module: str, names: tuple[str, ...]) -> None:
    assert opened("512").model.lora_names(module) == names


def test_tooncrafters_decoder_leaves_room_beyond_the_pictures_that_a_compiler_asks_for(opened: Open) -> None:
    """Inductor asks whether a convolution has at least 16: of a range that ends there 16 would be all that is left."""
    chunk = opened("tooncrafter").model.components["vae_decoder"].spec.limits.ranges["chunk"]
    assert chunk.min <= 14 and chunk.opt == 16 < chunk.max


def test_tooncrafters_decoder_takes_no_latents_of_another_size(opened: Open) -> None:
    run = opened("tooncrafter")
    decode = run.model.decoder(run, conditioned(run).tensors)
    assert decode(torch.zeros(16, 4, 16, 8)).shape == (16, 3, 128, 64)
    with pytest.raises(
        InputError, match="^ToonCrafter decodes latents of 64x128, as the clip's pictures are, found 64x64.$"
    ):
        decode(torch.zeros(16, 4, 8, 8))


def test_a_tooncrafter_of_other_levels_is_refused(tiny_dynamicrafter: Callable[[str], Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_dynamicrafter("tooncrafter"), tmp_path / "changed"))
    edit_json(folder / "vae" / "config.json", block_out_channels=[32, 64])
    with pytest.raises(CheckpointError, match="config.json: expected block_out_channels of 4 levels, found 2.$"):
        open_model(folder)

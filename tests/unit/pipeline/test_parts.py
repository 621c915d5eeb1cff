"""Parts load from whatever the layout allows, in the precision asked for, and never with weights made up."""

import gc
import json
import re
import sys
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.common.spec import PRECISIONS
from i2v_tensorrt.pipeline.models import parts
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan import vae
from i2v_tensorrt.pipeline.request import ClipRequest

from ...helpers.refusals import refused
from .conftest import WEIGHTS, edit_json, sharded

Tensors = dict[str, torch.Tensor]
ONE_OF_EACH_LIBRARY = ("vae", "text_encoder")


def change_tensors(path: Path, change: Callable[[Tensors], Tensors], to: Path | None = None) -> None:
    save_file(change(load_file(path)), to or path, {"format": "pt"})


def marked(value: float, dtype: torch.dtype) -> Callable[[Tensors], Tensors]:
    """Every weight the same, to tell where they were read."""
    return lambda tensors: {name: torch.full_like(tensor, value, dtype=dtype) for name, tensor in tensors.items()}


def values(network: torch.nn.Module) -> set[float]:
    return {value for tensor in network.parameters() for value in tensor.unique().tolist()}


@pytest.mark.parametrize(
    ("stored", "precision", "value"),
    [
        (("",), "fp32", 0.25),
        (("",), "fp16", 0.25),
        (("fp16",), "fp32", 0.5),
        (("fp16",), "fp16", 0.5),
        (("", "fp16"), "fp32", 0.25),
        (("", "fp16"), "fp16", 0.5),
        (("", "fp16"), "bf16", 0.5),
    ],
)
@pytest.mark.parametrize("part", ONE_OF_EACH_LIBRARY)
def test_precision_chooses_the_variant(
    folder: Path, part: str, stored: tuple[str, ...], precision: str, value: float
) -> None:
    whole = folder / WEIGHTS[part]
    change_tensors(whole, marked(0.5, torch.float16), whole.with_suffix(".fp16.safetensors"))
    change_tensors(whole, marked(0.25, torch.float32))
    for variant in {"", "fp16"}.difference(stored):
        (whole.with_suffix(".fp16.safetensors") if variant else whole).unlink()
    model = I2VGenXL.open(folder)
    assert model.checkpoint.parts[part].variant_for(precision) == ("fp16" if value == 0.5 else None)
    network = model.part(part, precision)
    assert values(network) == {value}
    assert {tensor.dtype for tensor in network.parameters()} == {getattr(torch, PRECISIONS[precision])}


def assert_same_weights(folder: Path, other: Path, part: str) -> None:
    found, expected = (I2VGenXL.open(each).part(part, "fp32").state_dict() for each in (folder, other))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("variant", ["", "fp16"])
@pytest.mark.parametrize("part", WEIGHTS)
def test_shards_are_found_through_their_index_and_load_as_the_whole_does(
    tiny_folder: Path, folder: Path, part: str, variant: str
) -> None:
    index = sharded(folder, part, variant)
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    weights = open_model(folder).checkpoint.parts[part].weights
    assert weights == {variant: tuple(folder / part / name for name in names)}
    assert_same_weights(folder, tiny_folder, part)


def without_last(tensors: Tensors) -> Tensors:
    return {name: tensors[name] for name in sorted(tensors)[:-1]}


def with_more(tensors: Tensors) -> Tensors:
    return {**tensors, "nobody.asked.for_this": torch.zeros(2)}


def with_other_shape(tensors: Tensors) -> Tensors:
    name = max(tensors)
    return {**tensors, name: torch.zeros(*tensors[name].shape, 2)}


@pytest.mark.parametrize(
    ("change", "word"),
    [(without_last, "missing"), (with_more, "nobody.asked.for_this"), (with_other_shape, "mismatched")],
)
@pytest.mark.parametrize("part", WEIGHTS)
def test_weights_that_do_not_fit_are_refused(
    folder: Path, part: str, change: Callable[[Tensors], Tensors], word: str
) -> None:
    change_tensors(folder / WEIGHTS[part], change)
    assert_refused(folder, part, word)


@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("text_encoder", {"num_hidden_layers": 3}),
        ("text_encoder", {"num_hidden_layers": 1}),
        ("text_encoder", {"hidden_size": 64}),
        ("text_encoder", {"num_attention_heads": 5}),
        ("image_encoder", {"num_hidden_layers": 3}),
        ("image_encoder", {"projection_dim": 8}),
        ("image_encoder", {"patch_size": 0}),
        ("unet", {"layers_per_block": 2}),
        ("unet", {"cross_attention_dim": 64}),
        ("unet", {"norm_num_groups": 0}),
        ("unet", {"norm_num_groups": "x"}),
        ("unet", {"down_block_types": ["NoSuchBlock", "DownBlock3D"]}),
        ("vae", {"layers_per_block": 2}),
        ("vae", {"layers_per_block": 0}),
        ("vae", {"block_out_channels": [16, 16]}),
    ],
    ids=str,
)
def test_configuration_that_does_not_fit_is_refused(folder: Path, part: str, changes: dict[str, object]) -> None:
    edit_json(folder / part / "config.json", **changes)
    assert_refused(folder, part, "config")


def assert_refused(folder: Path, part: str, word: str) -> None:
    model = I2VGenXL.open(folder)
    with refused(CheckpointError, word, 500) as error:
        model.part(part, "fp32")
    assert str(folder / part) in str(error.value)


def as_transformers_4_names(tensors: Tensors) -> Tensors:
    found = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    return {**found, "text_model.embeddings.position_ids": torch.arange(77)[None]}


def as_diffusers_before_0_17_names(tensors: Tensors) -> Tensors:
    older = {".to_q.": ".query.", ".to_k.": ".key.", ".to_v.": ".value.", ".to_out.0.": ".proj_attn."}

    def rename(name: str) -> str:
        return next((name.replace(new, old) for new, old in older.items() if new in name), name)

    return {rename(name): tensor for name, tensor in tensors.items()}


@pytest.mark.parametrize(
    ("part", "rename"), [("text_encoder", as_transformers_4_names), ("vae", as_diffusers_before_0_17_names)]
)
def test_weights_under_the_names_of_older_versions(
    tiny_folder: Path, folder: Path, part: str, rename: Callable[[Tensors], Tensors]
) -> None:
    weights = folder / WEIGHTS[part]
    before = set(load_file(weights))
    change_tensors(weights, rename)
    assert set(load_file(weights)) != before
    assert_same_weights(folder, tiny_folder, part)


def test_loading_draws_no_bars(tiny_folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = I2VGenXL.open(tiny_folder)
    for part in WEIGHTS:
        model.part(part, "fp32")
    assert capfd.readouterr() == ("", "")


def test_components_of_one_part_share_its_weights_for_as_long_as_any_lives(tiny_folder: Path) -> None:
    model = I2VGenXL.open(tiny_folder)
    encoder, decoder = (model.components[name].load("fp32") for name in ("vae_encoder", "vae_decoder"))
    whole = weakref.ref(model.part("vae", "fp32"))
    del encoder
    gc.collect()
    assert whole() is not None and model.part("vae", "fp32") is whole()
    assert model.part("vae", "fp16") is not whole()
    del decoder
    gc.collect()
    assert whole() is None


def test_text_encoder_leaves_out_the_last_layer_however_often_it_is_made(tiny_folder: Path) -> None:
    from transformers import CLIPTextModel

    model = I2VGenXL.open(tiny_folder)
    ids = torch.randint(0, 514, (2, 77), generator=torch.Generator().manual_seed(0))
    reference = CLIPTextModel.from_pretrained(tiny_folder / "text_encoder").eval()
    body = getattr(reference, "text_model", reference)
    with torch.inference_mode():
        before_last = reference(ids, output_hidden_states=True).hidden_states[-2]
        expected = body.final_layer_norm(before_last)
        encoders = [model.components["text_encoder"].load("fp32") for _ in range(2)]
        assert all(torch.equal(encoder(ids), expected) for encoder in encoders)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "vocab.json").write_text("{"),
        lambda folder: (folder / "vocab.json").write_text("[1]"),
        lambda folder: (folder / "merges.txt").write_bytes(b"#version\n\xff\xfe\x00"),
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        lambda folder: (folder / "tokenizer_config.json").write_text('{"model_max_length": "x"}'),
        lambda folder: (folder / "vocab.json").write_text(
            json.dumps({**json.loads((folder / "vocab.json").read_text("utf-8")), "a</w>": 9999})
        ),
    ],
    ids=["vocabulary_cut", "vocabulary_a_list", "merges_garbage", "tokenizer_empty", "length_no_number", "beyond"],
)
def test_tokenizer_that_cannot_serve_is_refused(folder: Path, damage: Callable[[Path], object]) -> None:
    damage(folder / "tokenizer")
    request = ClipRequest(Image.new("RGB", (64, 64)), "a boat", "", 64, 64, 2, 8)

    def run(component: str, inputs: Mapping[str, torch.Tensor]) -> Tensors:
        assert component != "text_encoder"
        return {"image_embeds": torch.zeros(1, 32), "latents": torch.zeros(1, 4, 8, 8)}

    with refused(CheckpointError, re.escape(str(folder / "tokenizer")), 600):
        I2VGenXL.open(folder).encode(request, run, lambda *_: None)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_size_is_that_of_the_loaded_part(tiny_folder: Path, precision: str) -> None:
    """Whatever the files hold: they may be of either precision, or of both."""
    model = open_model(tiny_folder)
    weights = model.part("unet", precision).parameters()
    assert model.size_bytes("core", precision) == sum(tensor.nbytes for tensor in weights)


@pytest.mark.parametrize(("component", "library"), [("core", "diffusers"), ("text_encoder", "transformers")])
def test_a_library_that_lacks_a_class_is_named_with_its_version(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, component: str, library: str
) -> None:
    old = SimpleNamespace(__name__=library, __version__="0.27.2")
    monkeypatch.setattr(parts, "import_module", lambda name: old)
    with refused(CheckpointError, f"Expected {library} to have .+, found version 0.27.2 .+: pip install -U {library}"):
        open_model(tiny_folder).load(component, "fp32")


def test_wan_says_so_before_its_sizes_are_read(
    tiny_wan: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old = SimpleNamespace(__name__="diffusers", __version__="0.30.3")
    monkeypatch.setattr(parts, "import_module", lambda name: old)
    vae._sizes.cache_clear()
    with refused(CheckpointError, "Expected diffusers to have AutoencoderKLWan, found version 0.30.3 .+"):
        open_model(tiny_wan("wan21")).load("vae_decoder_first", "fp32")


SPLIT = "cannot import name 'resolve_revision' from 'huggingface_hub'"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ImportError(SPLIT, name="huggingface_hub"), f"needs libraries that go together, found: {SPLIT}"),
        (ModuleNotFoundError("No module named 'diffusers'", name="diffusers"), "needs the package diffusers, which is"),
    ],
)
@pytest.mark.parametrize("kind", ["i2vgen_xl", "svd", "wan"])
def test_libraries_that_do_not_go_together_are_told_from_a_missing_one(
    request: pytest.FixtureRequest, kind: str, error: ImportError, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Diffusers of this year beside the hub of transformers 4 raises an error that names a package which is there."""
    folder = {
        "i2vgen_xl": lambda: request.getfixturevalue("tiny_folder"),
        "svd": lambda: request.getfixturevalue("tiny_svd_folder"),
        "wan": lambda: request.getfixturevalue("tiny_wan")("wan21"),
    }[kind]()
    model = open_model(folder)
    part = "vae" if kind == "wan" else "image_encoder"
    component = "vae_decoder_first" if kind == "wan" else part

    class Broken:
        def find_spec(self, name: str, *_: object) -> None:
            if name.partition(".")[0] == "diffusers":
                raise error

    for name in [name for name in sys.modules if name.partition(".")[0] == "diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    vae._sizes.cache_clear()
    with pytest.raises(CheckpointError, match=re.escape(f"Loading {part} {told}")):
        model.load(component, "fp32")

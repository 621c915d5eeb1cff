"""What is not a whole model folder is refused before any of it is loaded: file, expected and found, in one sentence."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path, PurePath

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.common.spec import EngineSpec, Target
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Part
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import LAYOUT
from i2v_tensorrt.pipeline.models.registry import open_model

from ...helpers.refusals import refused
from .conftest import WEIGHTS, sharded

Damage = Callable[[Path], object]
CONFIGS = {
    **{part: f"{part}/config.json" for part in WEIGHTS},
    "scheduler": "scheduler/scheduler_config.json",
    "feature_extractor": "feature_extractor/preprocessor_config.json",
}


def edit(name: str, **changes: object) -> Damage:
    """Sets keys of a JSON file; None removes one."""

    def damage(folder: Path) -> None:
        data = {**json.loads((folder / name).read_text("utf-8")), **changes}
        kept = {key: value for key, value in data.items() if value is not None}
        (folder / name).write_text(json.dumps(kept), "utf-8")

    return damage


def write(name: str, content: str | bytes) -> Damage:
    data = content.encode() if isinstance(content, str) else content
    return lambda folder: (folder / name).write_bytes(data)


def remove(name: str) -> Damage:
    return lambda folder: (folder / name).unlink()


def cut(name: str, size: Callable[[int], float]) -> Damage:
    """Leaves that many of a file's bytes, or makes it longer."""
    return lambda folder: os.truncate(folder / name, int(size((folder / name).stat().st_size)))


def half(size: int) -> float:
    return size / 2


def with_header(name: str, change: Callable[[bytes], bytes]) -> Damage:
    """Changes a safetensors file's JSON header, and its length to match."""

    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        end = 8 + int.from_bytes(data[:8], "little")
        header = change(data[8:end])
        (folder / name).write_bytes(len(header).to_bytes(8, "little") + header + data[end:])

    return damage


def lying(header: bytes, **changes: object) -> bytes:
    tensors = json.loads(header)
    name = next(name for name in tensors if name != "__metadata__")
    tensors[name] = {**tensors[name], **changes}
    return json.dumps(tensors).encode()


def pickled(part: str) -> Damage:
    return lambda folder: (folder / WEIGHTS[part]).rename(folder / part / "pytorch_model.bin")


def shards_listed(weight_map: object) -> Damage:
    return lambda folder: sharded(folder, weight_map=weight_map)


FOREIGN: dict[str, tuple[Damage, list[str]]] = {
    "missing": (shutil.rmtree, ["model folder", "nothing"]),
    "a_file": (lambda folder: (shutil.rmtree(folder), folder.write_text("x")), ["model folder", "nothing"]),
    "no_index": (remove("model_index.json"), ["model_index.json", "nothing"]),
    "foreign": (
        edit("model_index.json", _class_name="StableDiffusionPipeline"),
        ["model_index.json", "expected I2VGenXLPipeline", "found StableDiffusionPipeline"],
    ),
    "class_is_no_text": (edit("model_index.json", _class_name=["I2VGenXLPipeline"]), ["model_index.json", "text"]),
    "other_class": (
        edit("model_index.json", unet=["diffusers", "UNet3DConditionModel"]),
        ["model_index.json", "expected unet to be I2VGenXLUNet", "found UNet3DConditionModel"],
    ),
    "null_class": (edit("model_index.json", vae=[None, None]), ["expected vae to be AutoencoderKL", "found None"]),
    "class_missing": (edit("model_index.json", scheduler=None), ["scheduler to be DDIMScheduler", "found None"]),
    "odd_entry": (edit("model_index.json", vae={"a": 1}), ["vae to be AutoencoderKL", "found {'a': 1}"]),
}
HUGE = (64 << 20) + 1
JSON: dict[str, tuple[Damage, list[str]]] = {
    "list": (write("unet/config.json", "[1]"), ["unet/config.json", "object", "list"]),
    "number": (write("model_index.json", "7"), ["model_index.json", "object", "int"]),
    "empty": (write("vae/config.json", ""), ["vae/config.json", "JSON"]),
    "cut": (cut("vae/config.json", half), ["vae/config.json", "JSON"]),
    "no_utf8": (write("vae/config.json", b"\xff\xfe{}"), ["vae/config.json", "JSON"]),
    "deep": (write("vae/config.json", "[" * 200_000), ["vae/config.json", "JSON"]),
    "twice": (write("vae/config.json", '{"a": {"b": 1, "b": 2}}'), ["vae/config.json", "b", "twice"]),
    "huge": (cut("vae/config.json", lambda _: HUGE), ["vae/config.json", "small", str(HUGE)]),
}
SETTINGS: dict[str, tuple[Damage, list[str]]] = {
    f"{part}-{name}-{value}": (edit(CONFIGS[part], **{name: value}), [CONFIGS[part], name])
    for part, name, value in [
        ("unet", "in_channels", None),
        ("unet", "cross_attention_dim", "wide"),
        ("unet", "block_out_channels", []),
        ("unet", "block_out_channels", 320),
        ("text_encoder", "max_position_embeddings", None),
        ("text_encoder", "vocab_size", -1),
        ("image_encoder", "image_size", True),
        ("image_encoder", "projection_dim", 2.5),
        ("feature_extractor", "image_mean", None),
        ("feature_extractor", "image_std", [0, "a", 1]),
        ("vae", "scaling_factor", 0),
        ("vae", "scaling_factor", None),
    ]
}
SAFETENSORS: dict[str, tuple[Damage, list[str]]] = {
    name: (damage, [WEIGHTS["vae"], "complete", "found"])
    for name, damage in {
        "emptied": cut(WEIGHTS["vae"], lambda _: 0),
        "cut_in_length": cut(WEIGHTS["vae"], lambda _: 5),
        "cut_in_header": cut(WEIGHTS["vae"], lambda _: 100),
        "cut_in_weights": cut(WEIGHTS["vae"], lambda size: 0.9 * size),
        "one_byte_short": cut(WEIGHTS["vae"], lambda size: size - 1),
        "garbage": write(WEIGHTS["vae"], b"\x80\x04" * 999),
        "endless_header": write(WEIGHTS["vae"], b"\xff" * 8 + b"{}"),
        "header_is_no_json": with_header(WEIGHTS["vae"], lambda header: header.replace(b"{", b"[", 1)),
        "wrong_shape": with_header(WEIGHTS["vae"], lambda header: lying(header, shape=[1 << 40])),
        "wrong_type": with_header(WEIGHTS["vae"], lambda header: lying(header, dtype="F9")),
        "beyond_the_end": with_header(WEIGHTS["vae"], lambda header: lying(header, data_offsets=[0, 1 << 50])),
        "overlapping": with_header(WEIGHTS["vae"], lambda header: lying(header, data_offsets=[4, 8])),
    }.items()
}
SHARDS: dict[str, tuple[Damage, list[str]]] = {
    "outside": (shards_listed({"a": "../vae/diffusion_pytorch_model.safetensors"}), ["index", "same folder"]),
    "absolute": (shards_listed({"a": "/etc/passwd"}), ["index", "same folder"]),
    "parent": (shards_listed({"a": ".."}), ["index", "..", "nothing"]),
    "not_there": (shards_listed({"a": "model-00009.safetensors"}), ["index", "model-00009.safetensors", "nothing"]),
    "no_names": (shards_listed({"a": ["x"], "b": {}}), ["index", "weight_map"]),
    "empty": (shards_listed({}), ["index", "weight_map"]),
    "no_map": (shards_listed([1]), ["index", "weight_map"]),
    "a_pickle": (
        lambda folder: (
            shards_listed({"a": "x.bin"})(folder),
            (folder / "text_encoder/x.bin").write_bytes(b"\x80\x04."),
        ),
        ["x.bin", "safetensors"],
    ),
    "one_cut": (
        lambda folder: (sharded(folder), cut("text_encoder/model-00002-of-00002.safetensors", half)(folder)),
        ["model-00002-of-00002.safetensors", "complete"],
    ),
}
REFUSED = {
    **FOREIGN,
    **JSON,
    **SETTINGS,
    **SAFETENSORS,
    **{f"shards_{name}": case for name, case in SHARDS.items()},
    **{f"no_{part}": (lambda at, part=part: shutil.rmtree(at / part), [f"model/{part}", "nothing"]) for part in LAYOUT},
    **{f"no_{part}_config": (remove(name), [name, "nothing"]) for part, name in CONFIGS.items()},
    **{f"no_{part}_weights": (remove(name), [f"model/{part}", "safetensors"]) for part, name in WEIGHTS.items()},
    **{f"{part}_pickled": (pickled(part), ["pytorch_model.bin", "pickle", "safetensors"]) for part in WEIGHTS},
    "no_tensors": (lambda folder: save_file({}, folder / WEIGHTS["unet"]), [WEIGHTS["unet"], "no tensors"]),
    "other_name": (
        lambda folder: (folder / WEIGHTS["unet"]).rename(folder / "unet/model.safetensors"),
        ["diffusion_pytorch_model.safetensors", "nothing"],
    ),
    "no_vocabulary": (remove("tokenizer/vocab.json"), ["tokenizer", "vocab.json", "nothing"]),
    "no_merges": (remove("tokenizer/merges.txt"), ["tokenizer", "merges.txt", "nothing"]),
}


@pytest.mark.parametrize(("damage", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_sentence(folder: Path, damage: Damage, words: list[str]) -> None:
    damage(folder)
    with refused(CheckpointError, most=600) as error:
        open_model(folder)
    assert [word for word in (str(folder), *words) if word not in str(error.value)] == []


def test_huge_json_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.truncate(folder / "model_index.json", 1 << 40)
    monkeypatch.setattr(Path, "read_text", lambda *_: pytest.fail("read it all"))
    with pytest.raises(CheckpointError, match="small"):
        open_model(folder)


def test_the_whole_folder_is_taken(tiny_folder: Path) -> None:
    model = open_model(tiny_folder)
    assert isinstance(model, VideoModel)
    assert set(model.checkpoint.parts) == set(LAYOUT)
    assert model.checkpoint.parts["unet"].weights == {"": (tiny_folder / WEIGHTS["unet"],)}


def test_a_tokenizer_may_be_one_file_and_a_pickle_beside_safetensors_is_passed_over(folder: Path) -> None:
    for name in ("tokenizer_config.json", "vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).unlink()
    (folder / "tokenizer/tokenizer.json").write_text("{}")
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"\x80\x04.")
    parts = open_model(folder).checkpoint.parts
    assert parts["tokenizer"].config == {}
    assert parts["unet"].weights == {"": (folder / WEIGHTS["unet"],)}


def test_links_are_followed_for_that_is_how_the_hubs_cache_looks(folder: Path, tmp_path: Path) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
        path.rename(blobs / str(number))
        path.symlink_to(blobs / str(number))
    assert open_model(folder).encode_sha256
    os.truncate((folder / WEIGHTS["vae"]).resolve(), 1000)
    with pytest.raises(CheckpointError, match="complete"):
        open_model(folder)


def test_a_link_that_leads_nowhere_is_named_where_it_matters_and_stops_nothing_elsewhere(
    folder: Path, tmp_path: Path
) -> None:
    """Hugging Face's cache removes what its links lead to."""
    (folder / "README.md").symlink_to(tmp_path / "gone")
    (folder / "unet" / "flax_model.msgpack").symlink_to(tmp_path / "gone")
    assert open_model(folder).encode_sha256
    weights = folder / WEIGHTS["vae"]
    weights.unlink()
    weights.symlink_to(tmp_path / "gone")
    with pytest.raises(CheckpointError, match=re.escape(f"Expected the file {weights}, found nothing there.")):
        open_model(folder)


def renamed(folder: Path, variant: str) -> None:
    for name in WEIGHTS.values():
        (folder / name).rename((folder / name).with_suffix(f".{variant}.safetensors"))


def test_a_repository_with_one_variant_alone_is_read(tiny_folder: Path, folder: Path) -> None:
    renamed(folder, "bf16")
    whole, renamed_model = open_model(tiny_folder), open_model(folder)
    for component in ("text_encoder", "core", "vae_decoder"):
        expected, found = (model.load(component, "bf16").state_dict() for model in (whole, renamed_model))
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


@pytest.mark.parametrize(
    ("stored", "read"),
    [
        ({"", "fp16", "bf16"}, {"fp32": None, "fp16": "fp16", "bf16": "bf16"}),
        ({"", "fp16"}, {"fp32": None, "fp16": "fp16", "bf16": "fp16"}),
        ({"", "bf16"}, {"fp32": None, "fp16": None, "bf16": "bf16"}),
        ({"fp16", "bf16"}, {"fp32": "fp16", "fp16": "fp16", "bf16": "bf16"}),
        ({"bf16"}, {"fp32": "bf16", "fp16": "bf16", "bf16": "bf16"}),
    ],
)
def test_the_variant_of_a_precision(stored: set[str], read: dict[str, str | None]) -> None:
    part = Part("unet", Path(), {}, dict.fromkeys(stored, ()))
    assert {precision: part.variant_for(precision) for precision in read} == read


def flip_last_byte(name: str) -> Damage:
    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[-1] ^= 1
        (folder / name).write_bytes(data)

    return damage


def add_half(folder: Path) -> None:
    tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(folder / WEIGHTS["vae"]).items()}
    save_file(tensors, (folder / WEIGHTS["vae"]).with_suffix(".fp16.safetensors"), {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "moves"),
    [
        *((flip_last_byte(name), True) for name in WEIGHTS.values()),
        (edit("unet/config.json", sample_size=9), True),
        (edit("feature_extractor/preprocessor_config.json", image_std=[1, 1, 1]), True),
        (edit("tokenizer/tokenizer_config.json", do_lower_case=False), True),
        (edit("tokenizer/vocab.json", extra=514), True),
        (write("tokenizer/merges.txt", "#version: 0.2\na b\n"), True),
        (add_half, True),
        (lambda folder: None, False),
        (edit("scheduler/scheduler_config.json", beta_end=0.5), False),
        (edit("model_index.json", _name_or_path="elsewhere"), False),
        (lambda folder: (folder / "unet/README.md").write_text("x"), False),
        (lambda folder: (folder / "tokenizer/.ipynb_checkpoints").mkdir(), False),
    ],
)
def test_the_digest_of_what_encoding_depends_on(tiny_folder: Path, folder: Path, change: Damage, moves: bool) -> None:
    change(folder)
    assert (open_model(folder).encode_sha256 != open_model(tiny_folder).encode_sha256) == moves


def test_every_file_that_may_be_loaded_is_checked_and_in_the_digest(folder: Path) -> None:
    """A single file and shards side by side: which of them a library prefers is its own affair."""
    whole = folder / WEIGHTS["text_encoder"]
    kept = whole.read_bytes()
    sharded(folder)
    whole.write_bytes(kept)
    before = open_model(folder).encode_sha256
    shard = "text_encoder/model-00001-of-00002.safetensors"
    flip_last_byte(shard)(folder)
    assert open_model(folder).encode_sha256 != before
    cut(shard, half)(folder)
    with pytest.raises(CheckpointError, match="complete"):
        open_model(folder)


def link_to(target: str) -> Damage:
    return lambda path: path.symlink_to(target.replace("ITSELF", path.name))


PUTS = [
    *map(link_to, ("/dev/zero", "ITSELF", "/etc/passwd", "/nowhere/at/all")),
    lambda path: os.mkfifo(path),
    Path.mkdir,
]


@pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
@pytest.mark.parametrize("name", ["unet/config.json", WEIGHTS["vae"]])
@pytest.mark.parametrize("put", PUTS)
def test_what_stands_in_the_place_of_a_file_is_refused(folder: Path, name: str, put: Callable[[Path], object]) -> None:
    """Links may lead anywhere, as those of a download's cache do; what they lead to must be a model's file."""
    (folder / name).unlink()
    put(folder / name)
    with pytest.raises(CheckpointError) as caught:
        open_model(folder)
    told = str(caught.value)
    assert "\n" not in told and "root" not in told.replace(str(folder), "")


@pytest.mark.skipif(os.name == "nt", reason="needs links")
def test_a_part_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert open_model(folder).size_bytes("core", "fp16") > 0


def test_names_of_models_are_the_same_by_another_platforms_order_of_paths(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows sorts paths without regard to case: the same folder must not become another model there."""
    folder = shutil.copytree(tiny_folder, tmp_path / "model")
    (folder / "tokenizer" / "README.md").write_text("read me")

    def names_of() -> list[str]:
        model = open_model(folder)
        target = Target("backend", "1", "cuda", "sm_89")
        specs = [EngineSpec(component.spec, component.spec.limits, "fp16") for component in model.components.values()]
        return [model.encode_sha256, *(engine_key(spec, target) for spec in specs)]

    here = names_of()
    monkeypatch.setattr(PurePath, "__lt__", lambda one, other: str(one).lower() < str(other).lower())
    assert names_of() == here

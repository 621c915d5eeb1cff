"""A checkpoint in its publishers' names becomes the folder that it was made from, bit for bit, or a sentence."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.cli.convert_command import main
from i2v_tensorrt.common.errors import CheckpointError, StorageError
from i2v_tensorrt.pipeline.convert import folder as module
from i2v_tensorrt.pipeline.convert.convert import convert, plan_of
from i2v_tensorrt.pipeline.dummies.dynamicrafter import TinyDynamiCrafterSizes, write_tiny_dynamicrafter
from i2v_tensorrt.pipeline.models.dynamicrafter.stored_names import published
from i2v_tensorrt.pipeline.models.registry import open_model

from ...helpers.published_files import WEIGHTS, write_published_dynamicrafter
from ...helpers.tooncrafter_reference import published_names
from ...helpers.toys import contents, raising

SIZES = TinyDynamiCrafterSizes(
    channels=(64, 64, 128, 128), head_dim=64, width=64, groups=32, vae_channels=(32, 32, 32, 32)
)
"""Of heads and groups as published, which tensors do not say."""
NETWORKS = ("unet", "image_projection", "vae")


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint in diffusers' names."""
    return write_tiny_dynamicrafter(tmp_path_factory.mktemp("stored") / "tiny", "512", SIZES)


@pytest.fixture(scope="module")
def file(stored: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same in its publishers'."""
    return write_published_dynamicrafter(stored, tmp_path_factory.mktemp("files") / "dynamicrafter_512.safetensors")


@pytest.mark.parametrize("kind", ["512", "interp"])
def test_the_same_weights_come_out(stored: Path, file: Path, tmp_path: Path, kind: str) -> None:
    model = open_model(convert([file], [stored], tmp_path / "made", kind))
    assert model.family == ("dynamicrafter" if kind == "512" else "dynamicrafter_interpolation")
    for part in NETWORKS:
        before, after = (load_file(folder / part / WEIGHTS) for folder in (stored, tmp_path / "made"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    for part in ("text_encoder", "tokenizer", "image_encoder"):
        assert contents(tmp_path / "made" / part) == contents(stored / part)
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


@pytest.mark.parametrize("part", [*NETWORKS, "scheduler"])
def test_it_gives_what_the_same_weights_give(stored: Path, file: Path, tmp_path: Path, part: str) -> None:
    made = open_model(convert([file], [stored], tmp_path / "made", "512"))
    own = open_model(stored)
    if part == "scheduler":
        assert made.scheduler_config == own.scheduler_config
        return
    for name in own.components:
        if own.part_of(name) != part:
            continue
        spec = own.components[name].spec
        sizes = {"batch": 1, "frames": 16, "latent_height": 8, "latent_width": 8, "chunk": 1}
        inputs = {tensor.name: torch.ones(tensor.shape_at(sizes)) for tensor in spec.inputs}
        with torch.inference_mode():
            assert torch.equal(*(model.load(name, "fp32")(**inputs) for model in (made, own)))


@pytest.mark.parametrize("kind", [None, "tooncrafter"])
def test_tooncrafter_is_told_by_its_decoder(tmp_path: Path, kind: str | None) -> None:
    stored = write_tiny_dynamicrafter(tmp_path / "stored", "tooncrafter", SIZES)
    vae = published_names(load_file(stored / "vae" / WEIGHTS))
    file = write_published_dynamicrafter(stored, tmp_path / "tooncrafter.safetensors", first_stage=vae)
    model = open_model(convert([file], [stored], tmp_path / "made", kind))
    assert model.family == "tooncrafter"
    for part in NETWORKS:
        before, after = (load_file(folder / part / WEIGHTS) for folder in (stored, tmp_path / "made"))
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_256_models_factor_is_in_its_values(stored: Path, tmp_path: Path) -> None:
    """It scales the picture's part of each attention, in which the values are linear; left out it is seen."""
    file = write_published_dynamicrafter(stored, tmp_path / "256.safetensors", None, later=True)
    alphas = {name: alpha for name, alpha in load_file(file).items() if name.endswith(".alpha")}
    assert len(alphas) == 16
    after = load_file(convert([file], [stored], tmp_path / "made", None) / "unet" / WEIGHTS)
    for name, before in load_file(stored / "unet" / WEIGHTS).items():
        module, _, parameter = name.rpartition(".")
        alpha = alphas.get(f"model.diffusion_model.{published(module)[-1].removesuffix('.to_v_ip')}.alpha")
        scaled = before if not module.endswith("to_v_ip") or alpha is None else before * (alpha.tanh() + 1)
        assert torch.equal(after[name], scaled), f"{name} of {parameter}"
        assert (scaled is before) or not torch.allclose(scaled, before), "a control"


def test_every_precision_is_kept(stored: Path, file: Path, tmp_path: Path) -> None:
    dtypes = [torch.float16, torch.bfloat16, torch.float32]
    mixed = {name: tensor.to(dtypes[number % 3]) for number, (name, tensor) in enumerate(load_file(file).items())}
    save_file(mixed, tmp_path / "mixed.safetensors")
    after = load_file(convert([tmp_path / "mixed.safetensors"], [stored], tmp_path / "made", "512") / "unet" / WEIGHTS)
    for name, tensor in after.items():
        module, _, parameter = name.rpartition(".")
        before = mixed[f"model.diffusion_model.{published(module)[0]}.{parameter}"]
        assert tensor.dtype == before.dtype and torch.equal(tensor, before.reshape(tensor.shape)), name


def test_tensors_stay_in_their_file_until_they_are_written(stored: Path, file: Path, tmp_path: Path) -> None:
    """What is written over a file's numbers is what its tensors are found to hold: none of them has been copied."""
    copy = Path(shutil.copy(file, tmp_path / "copy.safetensors"))
    plan = plan_of([copy], [stored], "512")
    held = [tensor for part in plan.parts.values() for tensor in part.tensors.values()]
    with copy.open("r+b") as stream:
        start = 8 + int.from_bytes(stream.read(8), "little")
        stream.seek(start)
        stream.write(bytes(copy.stat().st_size - start))
    assert len(held) > 1500 and not any(tensor.any() for tensor in held)


def test_an_interrupted_one_goes_on_where_it_ended(
    stored: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        write = module.write_tensors
        patch.setattr(
            module,
            "write_tensors",
            lambda path, t: raising(KeyboardInterrupt())() if "vae" in str(path) else write(path, t),
        )
        convert([file], [stored], tmp_path / "made", "512")
    assert not (tmp_path / "made").exists()
    unet = tmp_path / "made.unfinished" / "unet" / WEIGHTS
    before = unet.stat().st_ino
    made = convert([file], [stored], tmp_path / "made", "512")
    assert (made / "unet" / WEIGHTS).stat().st_ino == before
    open_model(made)


def test_what_was_begun_of_another_file_is_begun_anew(stored: Path, file: Path, tmp_path: Path) -> None:
    left = tmp_path / "made.unfinished" / "unet"
    left.mkdir(parents=True)
    (left / "config.json").write_text("{}")
    open_model(convert([file], [stored], tmp_path / "made", "512"))


def refusal(files: list[Path], folders: list[Path], out: Path, kind: str | None = "512") -> str:
    with pytest.raises((CheckpointError, StorageError)) as error:
        convert(files, folders, out, kind)
    assert not out.exists()
    return str(error.value)


def test_what_is_missing_is_named_with_its_usual_places(stored: Path, file: Path, tmp_path: Path) -> None:
    assert refusal([file], [stored / "tokenizer"], tmp_path / "made") == (
        "DynamiCrafter needs parts that its files do not hold: name folders that have them with --parts: text_encoder "
        "(usually in stabilityai/stable-diffusion-2-1 or ali-vilab/i2vgen-xl); image_encoder (usually in "
        "stabilityai/stable-video-diffusion-img2vid-xt or ali-vilab/i2vgen-xl)."
    )


def test_an_ambiguous_file_is_asked_about(stored: Path, file: Path, tmp_path: Path) -> None:
    told = refusal([file], [stored], tmp_path / "made", None)
    assert told == (
        "The tensors of this DynamiCrafter may be of several kinds: "
        "expected --kind 512 or --kind interp, found nothing."
    )
    assert "found --kind 1024" in refusal([file], [stored], tmp_path / "made", "1024")
    wide = write_published_dynamicrafter(stored, tmp_path / "1024.safetensors", 0.3)
    config = convert([wide], [stored], tmp_path / "made", None) / "scheduler" / "scheduler_config.json"
    assert json.loads(config.read_text())["dynamic_rescale_base"] == 0.3


@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".bin"])
def test_a_pickle_is_refused_with_the_file_to_take(stored: Path, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(b"\x80\x02}q\x00.")
    told = refusal([path], [stored], tmp_path / "made")
    assert told.startswith(f"{path} is a pickle, which can run code: expected a .safetensors file, usually")
    assert "dynamicrafter_512_fp16_pruned.safetensors" in told


def test_a_truncated_file_is_refused(stored: Path, file: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(file.read_bytes()[:-1000])
    assert refusal([path], [stored], tmp_path / "made").startswith(f"{path} is truncated or not a safetensors file")


def test_a_foreign_file_is_refused(stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"transformer.h.0.weight": torch.ones(2)}, path)
    assert refusal([path], [stored], tmp_path / "made").endswith(
        "found 1 of another model, such as transformer.h.0.weight."
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("less", "Expected the file to have all tensors of DynamiCrafter's UNet, found none for conv_out.bias."),
        ("more", "Expected no tensors beside those of DynamiCrafter's UNet, found 1, such as controlnet.weight."),
        ("other", "Expected the tensor for conv_out.bias of DynamiCrafter's UNet as [4], found [5]."),
        ("toon", "The tensors of this DynamiCrafter may be of several kinds: expected --kind tooncrafter, found"),
        (
            "unprojected",
            "Expected the tensors image_proj_model., which DynamiCrafter's picture goes through, found none",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_refused(stored: Path, file: Path, tmp_path: Path, change: str, words: str) -> None:
    tensors, bias = load_file(file), "model.diffusion_model.out.2.bias"
    if change == "less":
        del tensors[bias]
    elif change == "unprojected":
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("image_proj_model.")}
    else:
        added = {
            "more": "model.diffusion_model.controlnet.weight",
            "other": bias,
            "toon": "first_stage_model.decoder.attn_refinement.weight",
        }
        tensors[added[change]] = torch.ones(5)
    save_file(tensors, tmp_path / "changed.safetensors")
    assert refusal([tmp_path / "changed.safetensors"], [stored], tmp_path / "made").startswith(words)


def test_a_folder_that_is_there_is_left(stored: Path, file: Path, tmp_path: Path) -> None:
    (tmp_path / "made").mkdir()
    with pytest.raises(StorageError, match="is there already: take another name"):
        convert([file], [stored], tmp_path / "made", "512")
    assert list((tmp_path / "made").iterdir()) == []


def test_the_command(stored: Path, file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(file), "--out", str(tmp_path / "made"), "--parts", str(stored)]
    assert main(arguments) == 1
    assert capsys.readouterr().err.startswith(
        "run.py convert: The tensors of this DynamiCrafter may be of several kinds"
    )
    assert main([*arguments, "--kind", "512"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"{tmp_path / 'made'} is ready for I2V Model Loader."


def test_parts_may_lie_in_folders_of_their_own(stored: Path, file: Path, tmp_path: Path) -> None:
    parts = [Path(shutil.copytree(stored / name, tmp_path / "apart" / name)) for name in ("text_encoder", "tokenizer")]
    convert([file], [*parts, stored], tmp_path / "made", "512")
    assert contents(tmp_path / "made" / "text_encoder") == contents(stored / "text_encoder")

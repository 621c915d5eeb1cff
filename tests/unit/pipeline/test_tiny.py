"""The tiny checkpoint is one of the published layout, the same for the same seed, whole or refused."""

import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.pipeline.dummies import i2vgen_xl
from i2v_tensorrt.pipeline.dummies.dynamicrafter import write_tiny_dynamicrafter
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import TinySizes, byte_vocabulary, write_tiny_checkpoint
from i2v_tensorrt.pipeline.dummies.svd import write_tiny_svd
from i2v_tensorrt.pipeline.dummies.wan import KINDS, write_tiny_wan
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL

from ...helpers.refusals import refused
from ...helpers.toys import contents, raising


@pytest.mark.parametrize("kind", ["i2vgen_xl", "svd", "dynamicrafter", *KINDS])
def test_the_same_seed_gives_the_same_files_and_leaves_the_random_state(
    tiny_folder: Path,
    tiny_svd_folder: Path,
    tiny_wan: Callable[[str], Path],
    tiny_dynamicrafter: Callable[[str], Path],
    tmp_path: Path,
    kind: str,
) -> None:
    own = {
        "i2vgen_xl": (write_tiny_checkpoint, tiny_folder),
        "svd": (write_tiny_svd, tiny_svd_folder),
        "dynamicrafter": (write_tiny_dynamicrafter, tiny_dynamicrafter("512")),
    }
    write, folder = own[kind] if kind in own else (partial(write_tiny_wan, kind=kind), tiny_wan(kind))
    state = torch.random.get_rng_state()
    assert contents(write(tmp_path / "again")) == contents(folder)
    assert torch.equal(torch.random.get_rng_state(), state)
    first, other = contents(folder), contents(write(tmp_path / "other", seed=1))
    drawn = {name for name in first if name.endswith(".safetensors")}
    drawn |= {"vae/config.json"} if kind == "ti2v" else set()  # with means of its latents
    assert {name for name in first if first[name] != other[name]} == drawn


def test_it_is_small_and_no_layer_sleeps(tiny_folder: Path) -> None:
    unet = I2VGenXL.open(tiny_folder).part("unet", "fp32")
    assert 1.3e6 < sum(tensor.numel() for tensor in unet.parameters()) < 1.5e6
    assert [name for name, tensor in unet.named_parameters() if name.endswith("weight") and not tensor.any()] == []
    assert sum(path.stat().st_size for path in tiny_folder.rglob("*") if path.is_file()) < 10 << 20


def test_other_sizes(tmp_path: Path) -> None:
    sizes = TinySizes(channels=(16, 32, 32), width=16, groups=4, vae_channels=(8, 8), picture=16)
    model = I2VGenXL.open(write_tiny_checkpoint(tmp_path, sizes))
    assert model.components["core"].spec.limits.ranges["latent_height"].multiple == 4
    assert model.load("image_encoder", "fp32")(torch.zeros(1, 3, 16, 16)).shape == (1, 16)


@pytest.mark.parametrize("text", ["", "a boat", "Ünïcödé 火 🎈", "\x00\t\n", "it's 3,000 %"])
def test_every_byte_has_a_token(tiny_folder: Path, text: str) -> None:
    from transformers import CLIPTokenizer

    assert len(byte_vocabulary()) == 514
    tokenizer = CLIPTokenizer.from_pretrained(tiny_folder / "tokenizer")
    ids = tokenizer(text).input_ids
    assert (ids[0], ids[-1]) == (512, 513) and all(token < 512 for token in ids[1:-1])
    assert len(ids) >= 2 + len("".join(text.split()))


@pytest.mark.parametrize(
    "failure",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=["python", "safetensors"],
)
def test_a_full_disk_is_told_and_nothing_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    monkeypatch.setattr("safetensors.torch.save_file", raising(failure))
    with refused(StorageError, "could not be written.*No space left"):
        write_tiny_checkpoint(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_leaves_nothing_but_what_stood_in_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(i2vgen_xl, "write_vision", raising(KeyboardInterrupt()))
        write_tiny_checkpoint(tmp_path / "tiny")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine")
    monkeypatch.setattr(i2vgen_xl, "_write_diffusion", raising(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        write_tiny_checkpoint(tmp_path)
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="could not be written"):
        write_tiny_checkpoint(tmp_path / "file")


@pytest.mark.parametrize("kind", KINDS)
def test_no_norm_of_a_tiny_wan_sleeps(tiny_wan: Callable[[str], Path], kind: str) -> None:
    for path in tiny_wan(kind).rglob("*.safetensors"):
        asleep = [name for name, value in load_file(path).items() if value.numel() > 1 and value.min() == value.max()]
        assert path.parent.name == "image_encoder" or asleep == []

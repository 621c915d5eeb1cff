"""The checkpoint of random weights has the published size, and is one that the pack opens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder import full_size
from i2v_tensorrt.benchmarks.ladder.full_size import CHANGES, write_full_checkpoint
from i2v_tensorrt.benchmarks.ladder.subject import choose_subject
from i2v_tensorrt.engine_builder.errors import InputError
from i2v_tensorrt.pipeline.models.registry import open_model

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PARAMETERS = {"unet": 1_420_469_224, "vae": 83_653_863, "text_encoder": 352_984_064, "image_encoder": 632_076_800}
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [16, 32], "norm_num_groups": 4, "attention_head_dim": 4},
    "vae": {"layers_per_block": 2},
    "text_encoder": {"num_hidden_layers": 3},
    "image_encoder": {"num_hidden_layers": 3},
}


@pytest.mark.parametrize("part", CHANGES)
def test_published_number_of_parameters(part: str, tiny_folder: Path) -> None:
    config = json.loads((tiny_folder / part / "config.json").read_text("utf-8")) | CHANGES[part]
    with torch.device("meta"):
        network = full_size._maker(part)(config)
    assert sum(tensor.numel() for tensor in network.parameters()) == PARAMETERS[part]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(full_size, "CHANGES", SMALL)
    return write_full_checkpoint(tmp_path / "random", CPU, seed=3)


def test_a_checkpoint_that_the_pack_opens(small: Path) -> None:
    model = open_model(small)
    for part, changes in SMALL.items():
        assert changes.items() <= dict(model.checkpoint.parts[part].config).items()
        assert set(model.checkpoint.parts[part].weights) == {"fp16"}
    unet = model.part("unet", "fp16")
    silent = [
        name for name, module in unet.named_modules()
        if isinstance(getattr(module, "weight", None), torch.nn.Parameter) and not module.weight.any()
    ]  # fmt: skip
    assert silent == [], "no comparison would see a layer of zeros"
    assert unet.dtype == torch.float16


def test_the_seed_decides_and_a_finished_one_is_kept(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = Path("vae") / "diffusion_pytorch_model.fp16.safetensors"
    again, other = (write_full_checkpoint(tmp_path / f"seed{seed}", CPU, seed) for seed in (3, 4))
    assert (again / weights).read_bytes() == (small / weights).read_bytes() != (other / weights).read_bytes()
    monkeypatch.setattr(full_size, "write_tiny_checkpoint", None)
    assert write_full_checkpoint(small, CPU, 5) == small


def test_nothing_is_left_of_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_size, "CHANGES", {"unet": {"norm_num_groups": 5}})
    with pytest.raises(ValueError, match="must be divisible"):
        write_full_checkpoint(tmp_path / "random", CPU, 1)
    assert list(tmp_path.iterdir()) == []


def test_subjects(tmp_path: Path, tiny_folder: Path) -> None:
    assert choose_subject(None, None, CPU, tmp_path).name == "i2v-demo"
    found = choose_subject(None, None, GPU, tmp_path)
    assert (found.side, found.num_frames, found.steps, found.is_full_size) == (512, 16, 50, True)
    assert found.folder.parent == tmp_path / "checkpoints"
    assert choose_subject(str(tiny_folder), None, CPU, tmp_path).folder == tiny_folder.resolve()
    assert choose_subject(None, str(tiny_folder), CPU, tmp_path).folder == tiny_folder.resolve()
    assert choose_subject("tiny", None, CPU, tmp_path).folder.is_dir()


@pytest.mark.parametrize(("model", "weights"), [("tiny", "random"), ("nowhere", None), (None, "nowhere")])
def test_a_subject_that_there_is_not(tmp_path: Path, model: str | None, weights: str | None) -> None:
    with pytest.raises(InputError):
        choose_subject(model, weights, CPU, tmp_path)

"""The checkpoint of random weights has the published size, and is one that the pack opens."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.benchmarks.ladder.subject import PUBLISHED, choose_subject
from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.pipeline.dummies import full_size
from i2v_tensorrt.pipeline.dummies.full_size import FULL_SIZES, FullSize, write_full_checkpoint
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import INDEX
from i2v_tensorrt.pipeline.models.registry import open_model

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
PARAMETERS = {
    "i2vgen-xl-random": {
        "unet": 1_420_469_224, "vae": 83_653_863, "text_encoder": 352_984_064, "image_encoder": 632_076_800,
    },
    "svd-xt-random": {"unet": 1_524_623_082, "vae": 97_742_847, "image_encoder": 632_076_800},
    "dynamicrafter-random": {
        "unet": 1_438_854_980, "image_projection": 48_787_456, "vae": 83_653_863, "text_encoder": 352_984_064,
        "image_encoder": 630_766_080,
    },
}  # fmt: skip
RANDOM = "i2vgen-xl-random"
SMALL: dict[str, dict[str, Any]] = {
    "unet": {"block_out_channels": [16, 32], "norm_num_groups": 4, "attention_head_dim": 4},
    "vae": {"layers_per_block": 2},
    "text_encoder": {"num_hidden_layers": 3},
    "image_encoder": {"num_hidden_layers": 3},
}


def use(monkeypatch: pytest.MonkeyPatch, changes: dict[str, dict[str, Any]]) -> None:
    """The published size of I2VGen-XL is this."""
    monkeypatch.setitem(full_size.FULL_SIZES, RANDOM, FullSize(write_tiny_checkpoint, changes))


@pytest.mark.parametrize(("name", "part"), [(name, part) for name in PARAMETERS for part in PARAMETERS[name]])
def test_published_number_of_parameters(name: str, part: str, tmp_path: Path) -> None:
    full = FULL_SIZES[name]
    full.write_tiny(tmp_path / "tiny")
    index = json.loads((tmp_path / "tiny" / INDEX).read_text("utf-8"))
    config = json.loads((tmp_path / "tiny" / part / "config.json").read_text("utf-8")) | dict(full.changes[part])
    with torch.device("meta"):
        network = full_size.network_of(index[part], config)
    assert sum(tensor.numel() for tensor in network.parameters()) == PARAMETERS[name][part]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    use(monkeypatch, SMALL)
    return write_full_checkpoint(tmp_path / RANDOM, CPU, seed=3)


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
    again, other = (write_full_checkpoint(tmp_path / f"seed{seed}" / RANDOM, CPU, seed) for seed in (3, 4))
    assert (again / weights).read_bytes() == (small / weights).read_bytes() != (other / weights).read_bytes()
    monkeypatch.delitem(full_size.FULL_SIZES, RANDOM)
    assert write_full_checkpoint(small, CPU, 5) == small


def test_nothing_is_left_of_one_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, {"unet": {"norm_num_groups": 5}})
    with pytest.raises(ValueError, match="must be divisible"):
        write_full_checkpoint(tmp_path / RANDOM, CPU, 1)
    assert list(tmp_path.iterdir()) == []


def test_subjects(tmp_path: Path, tiny_folder: Path, tiny_svd_folder: Path) -> None:
    assert {f"{name}-random" for name in PUBLISHED} == set(FULL_SIZES), "each has a size to write"
    assert choose_subject(None, None, CPU, tmp_path).name == "i2v-demo"
    found = choose_subject(None, None, GPU, tmp_path)
    assert (found.usual.size, found.usual.num_frames, found.usual.steps) == ((512, 512), 16, 50)
    assert found.is_full_size and found.is_random and found.folder == tmp_path / "checkpoints" / RANDOM
    for given in ((str(tiny_folder), None), (None, str(tiny_folder))):
        assert choose_subject(*given, CPU, tmp_path).folder == tiny_folder.resolve()
    assert choose_subject("tiny", None, CPU, tmp_path).folder.is_dir()
    for name in ("svd-xt", str(tiny_svd_folder)):  # what is usual goes by the family
        found = choose_subject(name, None, GPU, tmp_path)
        assert (found.usual.size, found.usual.num_frames, found.usual.precision) == ((1024, 576), 25, "bf16")
        assert not found.is_full_size, "times are known of I2VGen-XL alone"


@pytest.mark.parametrize(("model", "weights"), [("tiny", "random"), ("nowhere", None), (None, "nowhere")])
def test_a_subject_that_there_is_not(tmp_path: Path, model: str | None, weights: str | None) -> None:
    with pytest.raises(InputError):
        choose_subject(model, weights, CPU, tmp_path)

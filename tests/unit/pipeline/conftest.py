"""A checkpoint to change, and networks that are run as they are."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.common.spec import Guidance
from i2v_tensorrt.pipeline.models.base import VideoModel

WEIGHTS = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "image_encoder": "image_encoder/model.safetensors",
}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to be changed."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model"))


def edit_json(path: Path, **changes: object) -> None:
    """Sets keys of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def sharded(folder: Path, part: str = "text_encoder", variant: str = "", weight_map: object = None) -> Path:
    """Splits a part's weights in two; `weight_map` replaces the true one. Returns the index."""
    whole = folder / WEIGHTS[part]
    tensors = load_file(whole)
    whole.unlink()
    stem, names = whole.name.removesuffix(".safetensors"), sorted(tensors)
    suffix = f".{variant}" if variant else ""
    true_map = {}
    for number, chosen in enumerate((names[::2], names[1::2]), start=1):
        shard = f"{stem}{suffix}-{number:05}-of-00002.safetensors"
        save_file({name: tensors[name] for name in chosen}, whole.with_name(shard), {"format": "pt"})
        true_map |= dict.fromkeys(chosen, shard)
    index = whole.with_name(f"{stem}.safetensors.index{suffix}.json")
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    content = {"metadata": {"total_size": size_bytes}, "weight_map": true_map if weight_map is None else weight_map}
    index.write_text(json.dumps(content), "utf-8")
    return index


class Networks:
    """Runs a model's components as they are, and remembers which."""

    def __init__(self, model: VideoModel, modules: Mapping[str, torch.nn.Module]) -> None:
        self.model, self.modules, self.ran = model, modules, list[str]()

    def __call__(self, component: str, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.ran.append(component)
        outputs = self.modules[component](**inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        names = [spec.name for spec in self.model.components[component].spec.outputs]
        return dict(zip(names, outputs, strict=True))


def assert_taken_by_the_core(model: VideoModel, found: Mapping[str, torch.Tensor], sizes: dict[str, int]) -> None:
    """A conditioning has all that the denoiser takes beside what changes from step to step."""
    specs = [spec for spec in model.components["core"].spec.inputs if spec.name not in ("sample", "timestep")]
    assert {spec.name for spec in specs} == found.keys() - model.decoder_inputs.keys()
    for spec in specs:
        batch = 2 if spec.guidance == Guidance.PER_BRANCH else 1
        assert found[spec.name].shape == (batch, *spec.shape_at(sizes)[1:])
        assert found[spec.name].dtype == torch.float32

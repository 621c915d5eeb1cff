"""The architecture at its published size, without a weight: the configurations are written out below."""

from typing import Any

import pytest
import torch

from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Checkpoint, Part
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "cross_attention_dim": 1024,
        "norm_num_groups": 32,
        "attention_head_dim": 64,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18125,
    },
    "text_encoder": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "vocab_size": 49408,
        "max_position_embeddings": 77,
    },
    "image_encoder": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 16,
        "hidden_act": "gelu",
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": 1024,
    },
    "tokenizer": {},
    "feature_extractor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "scheduler": {},
}
PARAMETERS = {"unet": 1_420_469_224, "vae": 83_653_863, "text_encoder": 352_984_064, "image_encoder": 632_076_800}
SIZES = {"batch": 2, "frames": 16, "latent_height": 64, "latent_width": 64, "chunk": 8}
SHAPES = {
    "text_encoder": {"input_ids": (2, 77), "text_states": (2, 77, 1024)},
    "image_encoder": {"pixel_values": (1, 3, 224, 224), "image_embeds": (1, 1024)},
    "vae_encoder": {"image": (1, 3, 512, 512), "latents": (1, 4, 64, 64)},
    "conditioner": {
        "fps": (2,),
        "image_latents": (2, 4, 16, 64, 64),
        "image_embeds": (2, 1, 1024),
        "text_states": (2, 77, 1024),
        "image_cond": (2, 4, 16, 64, 64),
        "fps_emb": (2, 1280),
        "context": (2, 145, 1024),
    },
    "core": {
        "sample": (2, 4, 16, 64, 64),
        "timestep": (2,),
        "image_cond": (2, 4, 16, 64, 64),
        "fps_emb": (2, 1280),
        "context": (2, 145, 1024),
        "prediction": (2, 4, 16, 64, 64),
    },
    "vae_decoder": {"latents": (8, 4, 64, 64), "image": (8, 3, 512, 512)},
}


def library_part(name: str) -> torch.nn.Module:
    from diffusers import AutoencoderKL, I2VGenXLUNet
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPVisionConfig, CLIPVisionModelWithProjection

    with torch.device("meta"):
        if name == "unet":
            return I2VGenXLUNet(**CONFIGS[name])
        if name == "vae":
            return AutoencoderKL(**CONFIGS[name])
        if name == "text_encoder":
            return CLIPTextModel(CLIPTextConfig(**CONFIGS[name]))
        return CLIPVisionModelWithProjection(CLIPVisionConfig(**CONFIGS[name]))


class Weightless(I2VGenXL):
    """The family with networks on the meta device."""

    def part(self, name: str, precision: str) -> Any:
        found = self._parts.get((name, precision))
        if found is None:
            self._parts[(name, precision)] = found = library_part(name)
        return found


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> I2VGenXL:
    folder = tmp_path_factory.mktemp("nothing")
    parts = {name: Part(name, folder / name, config, {}) for name, config in CONFIGS.items()}
    return Weightless(Checkpoint(folder, parts))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_parameters(model: I2VGenXL, name: str, count: int) -> None:
    assert sum(tensor.numel() for tensor in model.part(name, "fp16").parameters()) == count


@pytest.mark.parametrize("component", SHAPES)
def test_declared_shapes_are_the_documented_ones_and_what_the_network_gives(model: I2VGenXL, component: str) -> None:
    spec = model.components[component].spec
    declared = {tensor.name: tensor.shape_at(SIZES) for tensor in (*spec.inputs, *spec.outputs)}
    assert declared == SHAPES[component]
    inputs = {
        tensor.name: torch.zeros(tensor.shape_at(SIZES), dtype=getattr(torch, tensor.dtype_at("fp32")), device="meta")
        for tensor in spec.inputs
    }
    assert spec.limits.fits(spec.sizes_of(inputs))
    found = model.load(component, "fp32")(**inputs)
    found = found if isinstance(found, tuple) else (found,)
    assert [tuple(tensor.shape) for tensor in found] == [declared[tensor.name] for tensor in spec.outputs]


@pytest.mark.parametrize(
    ("changes", "violation"),
    [
        ({"latent_height": 88, "latent_width": 160}, ""),
        ({"batch": 1, "frames": 1, "latent_height": 8, "latent_width": 256}, ""),
        ({"frames": 64}, ""),
        ({"frames": 65}, "frames is 65, 1 above"),
        ({"batch": 3}, "batch is 3, 1 above"),
        ({"latent_width": 44}, "latent_width is 44, 4 more than a multiple of 8"),
        ({"latent_height": 264}, "latent_height is 264, 8 above"),
        ({"latent_height": 0}, "latent_height is 0, 8 below"),
    ],
)
def test_sizes_that_an_engine_of_the_core_may_serve(model: I2VGenXL, changes: dict[str, int], violation: str) -> None:
    found = model.components["core"].spec.limits.violations({**SIZES, **changes})
    assert len(found) == bool(violation) and all(text.startswith(violation) for text in found)

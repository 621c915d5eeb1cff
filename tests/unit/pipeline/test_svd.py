"""Stable Video Diffusion: its networks are diffusers', its conditioning is kept by what counts for it."""

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from PIL import Image

from i2v_tensorrt.common.errors import CheckpointError, InputError
from i2v_tensorrt.pipeline.conditioning import MAX_MOTION, MAX_NOISE_AUG, condition, conditioning_key
from i2v_tensorrt.pipeline.media.image import antialiased, crop_to_aspect
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Checkpoint, Part
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.svd.model import StableVideoDiffusion
from i2v_tensorrt.pipeline.request import ClipRequest
from i2v_tensorrt.pipeline.tensor_cache import ConditioningCache

from .conftest import Networks, assert_taken_by_the_core, edit_json

REQUEST = ClipRequest(Image.new("RGB", (90, 60), "teal"), "", "", 64, 72, 4, 7)
# Batch, frames, height and width in latents; the last are not multiples of what the network halves.
SHAPES = [(1, 4, 8, 8), (2, 1, 8, 8), (2, 25, 8, 12), (2, 3, 16, 8), (2, 1, 40, 36), (1, 2, 9, 11), (2, 3, 10, 7)]


@pytest.fixture(scope="module")
def model(tiny_svd_folder: Path) -> StableVideoDiffusion:
    return StableVideoDiffusion.open(tiny_svd_folder)


@pytest.fixture(scope="module")
def networks(model: StableVideoDiffusion) -> dict[str, torch.nn.Module]:
    return {name: model.load(name, "fp32") for name in model.components}


@pytest.fixture(scope="module")
def library(model: StableVideoDiffusion) -> dict[str, Any]:
    """Diffusers' networks with their own forward; read apart, so that nothing is shared with ours."""
    folder = model.checkpoint.folder
    return {
        name: kind.from_pretrained(folder / name, low_cpu_mem_usage=False).eval().requires_grad_(False)
        for name, kind in KINDS.items()
    }


def clip_inputs(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The conditioner's inputs, different in every branch."""
    batch, frames, *_ = shape
    generator = torch.Generator().manual_seed(sum(shape))
    return {
        "time_ids": torch.rand(batch, 3, generator=generator) * 100,
        "frame_index": torch.arange(frames).float(),
        "image_embeds": torch.randn(batch, 32, generator=generator),
    }


def denoiser_inputs(shape: tuple[int, ...], conditioner: torch.nn.Module) -> dict[str, torch.Tensor]:
    batch, frames, height, width = shape
    clip_emb, frame_emb, attended = conditioner(**clip_inputs(shape))
    generator = torch.Generator().manual_seed(2)
    return {
        "sample": torch.randn(batch, frames, 4, height, width, generator=generator),
        "timestep": torch.full((batch,), 0.7),
        "image_latents": torch.randn(batch, 4, height, width, generator=generator),
        "clip_emb": clip_emb,
        "frame_emb": frame_emb,
        "attended": attended,
    }


@pytest.mark.parametrize("timestep", [1.6377, -1.5537])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_both_networks_are_the_whole(
    shape: tuple[int, ...], timestep: float, library: Mapping[str, Any], networks: Mapping[str, torch.nn.Module]
) -> None:
    given, inputs = clip_inputs(shape), denoiser_inputs(shape, networks["conditioner"])
    pictures = inputs["image_latents"][:, None].expand(-1, shape[1], -1, -1, -1)
    expected = library["unet"](
        torch.cat([inputs["sample"], pictures], dim=2),
        torch.tensor(timestep),
        encoder_hidden_states=given["image_embeds"][:, None],
        added_time_ids=given["time_ids"],
    ).sample
    found = networks["core"](**{**inputs, "timestep": torch.full((shape[0],), timestep)})
    assert expected.abs().mean() > 0.01
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max().clamp(min=1)


@pytest.mark.parametrize("branch", [0, 1])
@pytest.mark.parametrize("name", ["sample", "timestep", "image_latents", "clip_emb", "attended"])
def test_the_core_hears_every_input_in_its_branch_alone(
    name: str, branch: int, networks: Mapping[str, torch.nn.Module]
) -> None:
    inputs = denoiser_inputs((2, 3, 8, 8), networks["conditioner"])
    changed = inputs[name].clone()
    changed[branch] += 0.1
    before, after = networks["core"](**inputs), networks["core"](**{**inputs, name: changed})
    moves = (after - before).abs().flatten(1).amax(1)
    assert moves[branch] > 1e-4 and moves[1 - branch] == 0


def test_every_constant_of_every_layer_counts(networks: Mapping[str, torch.nn.Module]) -> None:
    inputs = denoiser_inputs((1, 2, 8, 8), networks["conditioner"])
    before = networks["core"](**inputs)
    for name, wide in (("frame_emb", 32), ("attended", 32)):
        for start in range(0, inputs[name].shape[-1], wide):
            changed = inputs[name].clone()
            changed[..., start : start + wide] += torch.linspace(0, 1, wide)
            moved = (networks["core"](**{**inputs, name: changed}) - before).abs().max()
            assert moved > 1e-6, f"{name} from channel {start}"


@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 8, 12), (3, 9, 11)], ids=str)
def test_the_decoder_is_the_librarys(
    shape: tuple[int, int, int], library: Mapping[str, Any], networks: Mapping[str, torch.nn.Module]
) -> None:
    frames, height, width = shape
    latents = torch.randn(frames, 4, height, width, generator=torch.Generator().manual_seed(frames))
    expected = library["vae"].decode(latents, num_frames=frames).sample
    found = networks["vae_decoder"](latents)
    assert (found - expected).abs().max() <= 5e-6 * expected.abs().max().clamp(min=1)


# The published size, without a weight.

CONFIGS: dict[str, dict[str, Any]] = {
    "unet": {
        "in_channels": 8,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
        "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
        "layers_per_block": 2,
        "transformer_layers_per_block": 1,
        "cross_attention_dim": 1024,
        "num_attention_heads": [5, 10, 20, 20],
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 768,
        "num_frames": 25,
    },
    "vae": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "scaling_factor": 0.18215,
    },
    "image_encoder": {"image_size": 224, "projection_dim": 1024},
    "feature_extractor": {"image_mean": [0.5] * 3, "image_std": [0.5] * 3},
    "scheduler": {},
}
KINDS: dict[str, Any] = {"unet": UNetSpatioTemporalConditionModel, "vae": AutoencoderKLTemporalDecoder}
SIZES = {"batch": 2, "frames": 25, "latent_height": 72, "latent_width": 128, "chunk": 8}


class Weightless(StableVideoDiffusion):
    """The family with networks on the meta device."""

    def part(self, name: str, precision: str) -> Any:
        with torch.device("meta"):
            return KINDS[name](**CONFIGS[name]).to("meta")  # the mixers' shares do not heed the device


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> StableVideoDiffusion:
    folder = tmp_path_factory.mktemp("nothing")
    parts = {name: Part(name, folder / name, config, {}) for name, config in CONFIGS.items()}
    return Weightless(Checkpoint(folder, parts))


@pytest.mark.parametrize("component", ["vae_encoder", "conditioner", "core", "vae_decoder"])
def test_declared_shapes_are_what_the_published_network_gives(published: StableVideoDiffusion, component: str) -> None:
    spec = published.components[component].spec
    inputs = {tensor.name: torch.zeros(tensor.shape_at(SIZES), device="meta") for tensor in spec.inputs}
    assert spec.limits.fits(spec.sizes_of(inputs))
    found = published.load(component, "fp32")(**inputs)
    found = found if isinstance(found, tuple) else (found,)
    assert [tuple(tensor.shape) for tensor in found] == [tensor.shape_at(SIZES) for tensor in spec.outputs]


def test_what_the_core_is_given_is_much_smaller_than_what_it_saves(published: StableVideoDiffusion) -> None:
    """All of cross-attention: 32 attentions with their queries, keys and norms are not in the denoiser at all."""

    def count(network: torch.nn.Module, *names: str) -> int:
        return sum(p.numel() for name, p in network.named_parameters() if re.search("|".join(names), name))

    attended = next(each for each in published.components["core"].spec.inputs if each.name == "attended")
    assert attended.shape_at(SIZES) == (2, 2 * (5 * 320 + 5 * 640 + 6 * 1280))
    whole = published.part("unet", "fp32")
    unused = count(whole, r"\.attn2\.to_[qk]\.", r"\.(temporal_)?transformer_blocks\..*\.norm2\.")
    used = sum(count(published.load(name, "fp32"), "") for name in ("core", "conditioner"))
    assert count(whole, "") == used + unused


def test_sizes_that_an_engine_of_the_core_may_serve(published: StableVideoDiffusion) -> None:
    limits = published.components["core"].spec.limits
    assert limits.violations({**SIZES, "latent_width": 128}) == []
    assert limits.violations({**SIZES, "latent_width": 124}) == ["latent_width is 124, 4 more than a multiple of 8"]


# Conditioning.


@pytest.fixture
def run(model: StableVideoDiffusion, networks: Mapping[str, torch.nn.Module]) -> Networks:
    return Networks(model, networks)


def conditioned(run: Networks, request: ClipRequest = REQUEST, cache: ConditioningCache | None = None) -> Any:
    return condition(run.model, request, "fp32", run, cache or ConditioningCache(None), lambda *_: None)


def test_what_comes_out_is_what_the_core_takes(run: Networks) -> None:
    found = conditioned(run).tensors
    assert run.ran == ["image_encoder", "vae_encoder", "conditioner"]
    sizes = {"batch": 2, "frames": 4, "latent_height": 9, "latent_width": 8}
    assert_taken_by_the_core(run.model, found, sizes)
    assert not found["image_latents"][0].any() and found["image_latents"][1].any()


CHANGES: list[dict[str, object]] = [
    {"fps": 8},
    {"motion_bucket_id": 128},
    {"noise_aug_strength": 0.03},
    {"noise_aug_seed": 1},
    {"num_frames": 5},
    {"picture": Image.new("RGB", (90, 60), "tan")},
]


def test_the_key_changes_with_what_counts_and_with_nothing_else(model: StableVideoDiffusion, tiny_folder: Path) -> None:
    keys = [conditioning_key(model, replace(REQUEST, **change), "fp32") for change in ({}, *CHANGES)]
    assert len(set(keys)) == len(keys)
    for change in ({"prompt": "a boat"}, {"negative_prompt": "blurry"}):
        assert conditioning_key(model, replace(REQUEST, **change), "fp32") == keys[0]
    other = open_model(tiny_folder)
    for change in ({"motion_bucket_id": 128}, {"noise_aug_strength": 0.03}, {"noise_aug_seed": 1}):
        asked = replace(REQUEST, **change)
        assert conditioning_key(other, asked, "fp32") == conditioning_key(other, REQUEST, "fp32")


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: "+".join(change))
def test_another_request_is_encoded_and_differs(run: Networks, change: dict[str, object]) -> None:
    cache = ConditioningCache(None)
    base, other = (conditioned(run, replace(REQUEST, **each), cache) for each in ({}, change))
    assert other.place == "encoded"
    assert any(not torch.equal(base.tensors[name], other.tensors[name]) for name in base.tensors)
    told = ("This checkpoint was trained for 4 frames, asked for 5: they may look worse.",)
    assert (base.notes, other.notes) == ((), told if "num_frames" in change else ())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"motion_bucket_id": MAX_MOTION + 1}, "The motion bucket is a whole number from 0"),
        ({"motion_bucket_id": -1}, "The motion bucket is a whole number from 0"),
        ({"noise_aug_strength": float("nan")}, "found nan"),
        ({"noise_aug_strength": MAX_NOISE_AUG + 1}, "from 0 to 10"),
        ({"noise_aug_seed": 1 << 64}, "seed is a whole number"),
    ],
)
def test_what_cannot_be_served_is_refused(run: Networks, change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        conditioned(run, replace(REQUEST, **change))
    assert run.ran == []


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (300, 7), (64, 72)], ids=str)
def test_any_picture_will_do(run: Networks, size: tuple[int, int]) -> None:
    found = conditioned(run, replace(REQUEST, picture=Image.new("RGB", size, "teal")))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in found.tensors.values())


# What else it stands on.


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (64, 48), (224, 224), (225, 223)], ids=str)
def test_pictures_are_scaled_as_the_published_pipeline_does(size: tuple[int, int]) -> None:
    from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.allclose(antialiased(image, 224), _resize_with_antialiasing(image, (224, 224)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "asked", "part"),
    [
        ((1024, 576), (1024, 576), (1024, 576)),
        ((2048, 1152), (1024, 576), (2048, 1152)),
        ((512, 512), (1024, 576), (512, 288)),
        ((100, 400), (64, 64), (100, 100)),
        ((1, 900), (1024, 576), (1, 1)),
    ],
)
def test_the_middle_of_the_right_shape_is_taken(
    size: tuple[int, int], asked: tuple[int, int], part: tuple[int, int]
) -> None:
    assert crop_to_aspect(Image.new("RGB", size), *asked).size == part


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("down_block_types", None, "down_block_types to be a list of texts, found None"),
        ("up_block_types", [1, 2], "a list of texts"),
        ("num_frames", 0, "a whole number above 0, found 0"),
    ],
)
def test_a_configuration_that_lacks_something_is_refused(
    tiny_svd_folder: Path, tmp_path: Path, name: str, value: object, words: str
) -> None:
    folder = shutil.copytree(tiny_svd_folder, tmp_path / "svd")
    edit_json(folder / "unet" / "config.json", **{name: value})
    with pytest.raises(CheckpointError, match=words):
        open_model(folder)


def test_the_family_is_found_by_the_folder(tiny_svd_folder: Path, tiny_folder: Path) -> None:
    assert (open_model(tiny_svd_folder).family, open_model(tiny_folder).family) == ("svd", "i2vgen_xl")

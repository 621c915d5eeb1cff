"""Wan: its transformers are diffusers', at the published sizes too; which folders it takes; what its clips measure."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from i2v_tensorrt.common.errors import CheckpointError, InputError
from i2v_tensorrt.pipeline.conditioning import conditioning_key
from i2v_tensorrt.pipeline.denoising.sampler import sample
from i2v_tensorrt.pipeline.denoising.schedulers import SamplerSettings, make_scheduler
from i2v_tensorrt.pipeline.dummies.wan import KINDS
from i2v_tensorrt.pipeline.media.image import middle_square
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.checkpoints.diffusers_folder import Checkpoint
from i2v_tensorrt.pipeline.models.latent_space import LatentSpace
from i2v_tensorrt.pipeline.models.parts import share_embedding
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan.model import Wan21
from i2v_tensorrt.pipeline.models.wan.wan22 import WanA14B, WanTI2V
from i2v_tensorrt.pipeline.request import ClipRequest

from .conftest import edit_json

Folder = Callable[[str], Path]
CLASSES = {"wan21": Wan21, "a14b": WanA14B, "ti2v": WanTI2V}
CONFIG = "transformer/config.json"
REQUEST = ClipRequest(Image.new("RGB", (90, 60), "teal"), "a boat", "", 64, 64, 5, 16)


# The denoiser.


@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (2, 1, 6, 12), (2, 3, 4, 10)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_the_core_is_the_librarys_transformer(tiny_wan: Folder, kind: str, shape: tuple[int, int, int, int]) -> None:
    from diffusers import WanTransformer3DModel
    from safetensors.torch import load_file

    model, (batch, frames, height, width) = open_model(tiny_wan(kind)), shape
    library: Any = WanTransformer3DModel.from_config(model.checkpoint.parts["transformer"].config)
    library.load_state_dict(load_file(tiny_wan(kind) / "transformer" / "diffusion_pytorch_model.safetensors"))
    sizes = {"batch": batch, "frames": frames, "latent_height": height, "latent_width": width}
    generator = torch.Generator().manual_seed(sum(shape))
    specs = model.components["core"].spec.inputs
    inputs = {spec.name: torch.randn(spec.shape_at(sizes), generator=generator) for spec in specs}
    inputs["timestep"] = torch.rand(inputs["timestep"].shape, generator=generator) * 1000
    timestep = inputs["timestep"]
    if kind == "ti2v":
        timestep = timestep[:, :, None].expand(-1, -1, height * width // 4).flatten(1)
    pictures = [inputs["condition"]] if "condition" in inputs else []
    with torch.no_grad():
        expected = library(
            torch.cat([inputs["sample"], *pictures], dim=1),
            timestep,
            inputs["text_states"],
            inputs.get("image_states"),
            return_dict=False,
        )[0]
        found = model.load("core", "fp32")(**inputs)
    assert expected.abs().mean() > 0.01
    assert (found - expected).abs().max() <= 2e-6 * expected.abs().max().clamp(min=1)


PUBLISHED: dict[str, dict[str, Any]] = {
    "wan21": {"in_channels": 36, "out_channels": 16, "num_layers": 40, "image_dim": 1280, "added_kv_proj_dim": 5120},
    "a14b": {"in_channels": 36, "out_channels": 16, "num_layers": 40},
    "ti2v": {
        "in_channels": 48,
        "out_channels": 48,
        "num_layers": 30,
        "num_attention_heads": 24,
        "ffn_dim": 14336,
    },
}
"""Beside diffusers' defaults, which are the 14 billion parameters'."""
PARAMETERS = {"wan21": 16.4e9, "a14b": 14.3e9, "ti2v": 5.0e9}


@pytest.mark.parametrize("kind", KINDS)
def test_declared_shapes_are_what_the_published_transformer_gives(
    tiny_wan: Folder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        transformer: Any = WanTransformer3DModel(**PUBLISHED[kind])
    parameters = sum(tensor.numel() for tensor in transformer.parameters())
    assert abs(parameters / PARAMETERS[kind] - 1) < 0.01
    tiny = open_model(tiny_wan(kind))
    vision = {"image_size": 224, "patch_size": 14, "hidden_size": 1280}
    config = dict(transformer.config)
    settings = {"transformer": config, "transformer_2": config, "image_encoder": vision}
    whole = tiny.checkpoint
    parts = {name: replace(part, config=settings.get(name, part.config)) for name, part in whole.parts.items()}
    model = type(tiny)(Checkpoint(whole.folder, parts, whole.index))
    monkeypatch.setattr(model, "part", lambda *_: transformer)
    spec = model.components["core"].spec
    sizes = {"batch": 2, "frames": 21, "latent_height": 60, "latent_width": 104}
    assert spec.limits.fits(sizes)
    inputs = {tensor.name: torch.zeros(tensor.shape_at(sizes), device="meta") for tensor in spec.inputs}
    denoiser = model.load("core", "fp32").to("meta")  # our own tables of positions do not heed the device
    assert [tuple(denoiser(**inputs).shape)] == [tensor.shape_at(sizes) for tensor in spec.outputs]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_what_the_library_keeps_in_full_precision_stays_so(tiny_wan: Folder, precision: str) -> None:
    part = open_model(tiny_wan("wan21")).part("transformer", precision)
    kept = {name for name, tensor in part.named_parameters() if tensor.dtype == torch.float32}
    assert {name.split(".")[-1] for name in kept} >= {"scale_shift_table"}
    assert any("time_embedder" in name for name in kept) and not any("attn1" in name for name in kept)
    denoiser = open_model(tiny_wan("wan21")).load("core", precision)
    assert all(tensor.device.type == "cpu" for tensor in (*denoiser.parameters(), *denoiser.buffers()))


# Folders.


def edited(folder: Path, to: Path, file: str, **changes: Any) -> Path:
    """A copy of a checkpoint with other settings in one of its JSON files."""
    shutil.copytree(folder, to)
    edit_json(to / file, **changes)
    return to


@pytest.mark.parametrize(
    ("kind", "file", "changes", "words"),
    [
        ("ti2v", "model_index.json", {"expand_timesteps": False}, "found WanPipeline"),
        ("a14b", "model_index.json", {"boundary_ratio": None}, "boundary_ratio to be a number between 0 and 1"),
        ("a14b", "model_index.json", {"boundary_ratio": 1.5}, "found 1.5"),
        ("a14b", "model_index.json", {"transformer_2": [None, None]}, "expected image_encoder to be CLIPVisionModel"),
        ("wan21", "vae/config.json", {"z_dim": 12}, "expected z_dim, latents_mean and latents_std of 16"),
        ("wan21", "vae/config.json", {"latents_std": [1.0]}, "latents_std of 16, found"),
        ("wan21", CONFIG, {"in_channels": 16}, "expected in_channels 36 and out_channels 16"),
        ("a14b", "transformer_2/config.json", {"in_channels": 16}, "expected in_channels 36 and out_channels 16"),
        ("wan21", CONFIG, {"pos_embed_seq_len": 514}, "a first and a last picture, which is not served"),
        ("wan21", CONFIG, {"num_layers": 3}, "to fit the weights, found 32 missing"),
        ("wan21", CONFIG, {"num_layers": 1}, "unexpected, such as blocks.1"),
        ("wan21", CONFIG, {"ffn_dim": 5}, "mismatched, such as blocks.0.ffn"),
        ("wan21", CONFIG, {"patch_size": [2, 2, 2]}, "mismatched, such as patch_embedding.weight"),
    ],
    ids=str,
)
def test_a_folder_that_does_not_fit_is_refused(
    tiny_wan: Folder, tmp_path: Path, kind: str, file: str, changes: dict[str, Any], words: str
) -> None:
    folder = edited(tiny_wan(kind), tmp_path / kind, file, **changes)
    with pytest.raises(CheckpointError) as error:
        open_model(folder).load("core", "fp32")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_an_embedding_that_the_file_holds_once_is_the_encoders(tiny_wan: Folder, tmp_path: Path) -> None:
    """As in Wan's published files, whose configuration says that nothing is shared."""
    folder = edited(tiny_wan("wan21"), tmp_path / "once", "text_encoder/config.json", tie_word_embeddings=False)
    path = folder / "text_encoder" / "model.safetensors"
    tensors = load_file(path)
    embedding = tensors.pop("encoder.embed_tokens.weight", None)
    save_file({"shared.weight": embedding, **tensors} if embedding is not None else tensors, path, {"format": "pt"})
    found, expected = (open_model(each).load("text_encoder", "fp32") for each in (folder, tiny_wan("wan21")))
    assert torch.equal(found.embedding.weight, expected.embedding.weight)


def test_an_encoder_without_an_embedding_of_its_own_is_given_the_shared_one() -> None:
    """What transformers 5.0 to 5.2 leave to the caller."""
    network = torch.nn.Module()
    network.shared, network.encoder = torch.nn.Embedding(4, 2), torch.nn.Module()
    network.encoder.embed_tokens = torch.nn.Embedding(4, 2)
    report = {"missing_keys": ["encoder.embed_tokens.weight", "other"], "unexpected_keys": []}
    assert share_embedding(network, report) == {"missing_keys": {"other"}, "unexpected_keys": []}
    assert network.encoder.embed_tokens is network.shared
    assert share_embedding(torch.nn.Linear(1, 1), report)["missing_keys"] == {"encoder.embed_tokens.weight", "other"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_tells_which_wan_it_is(tiny_wan: Folder, tmp_path: Path, kind: str) -> None:
    """The pipeline with a picture may have saved TI2V too."""
    assert type(open_model(tiny_wan(kind))) is CLASSES[kind]
    for name in ("T5TokenizerFast", "T5Tokenizer") if kind == "ti2v" else ():
        changes = {"_class_name": "WanImageToVideoPipeline", "tokenizer": ["transformers", name]}
        saved = edited(tiny_wan(kind), tmp_path / name, "model_index.json", **changes)
        assert isinstance(open_model(saved), WanTI2V)


# Requests.


@pytest.mark.parametrize("kind", KINDS)
def test_the_key_knows_what_counts(tiny_wan: Folder, tmp_path: Path, kind: str) -> None:
    """What was distilled or merged into a transformer has the encodings of the checkpoint that it comes from."""
    model, distilled = open_model(tiny_wan(kind)), edited(tiny_wan(kind), tmp_path / kind, CONFIG, note="distilled")
    base = conditioning_key(model, REQUEST, "fp32")
    assert conditioning_key(open_model(distilled), REQUEST, "fp32") == base
    for change in ({"fps": 24}, {"motion_bucket_id": 3}):
        assert conditioning_key(model, replace(REQUEST, **change), "fp32") == base
    for change in ({"prompt": "a kite"}, {"negative_prompt": "dull"}, {"num_frames": 9}, {"width": 96}):
        assert conditioning_key(model, replace(REQUEST, **change), "fp32") != base


def test_the_experts_share_the_clip_at_the_boundary(tiny_wan: Folder) -> None:
    model = open_model(tiny_wan("a14b"))
    assert [model.select_denoiser(t) for t in (999.0, 900.0, 899.0, 1.0)] == ["core", "core", "core_late", "core_late"]
    assert model.denoisers == ("core", "core_late")


VIDEO = LatentSpace(16, 8, 4, 16, 161, "Wan21", video=True)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((832, 480, 81), None),
        ((832, 480, 1), None),
        ((840, 480, 81), "Width is a multiple of 16 for Wan, found 840: the nearest is 832."),
        ((832, 8, 81), "Height is a multiple of 16 for Wan, found 8: the nearest is 16."),
        ((832, 480, 82), "Wan makes a frame and then 4 at a time, found 82: near are 81 and 85."),
        ((832, 480, 160), "Wan makes a frame and then 4 at a time, found 160: near are 157 and 161."),
        ((832, 480, 165), "Wan makes at most 161 frames, found 165."),
    ],
    ids=str,
)
def test_a_size_that_it_does_not_make_is_told_with_the_nearest(size: tuple[int, int, int], words: str | None) -> None:
    assert VIDEO.violation("Wan", *size) == words


def test_latents_are_a_video_to_comfyui_and_back() -> None:
    latents = torch.randn(VIDEO.shape(64, 96, 9), generator=torch.Generator().manual_seed(0))
    assert latents.shape == (3, 16, 12, 8) and VIDEO.num_frames(3) == 9
    packed = VIDEO.pack(latents)
    assert packed.shape == (1, 16, 3, 12, 8)
    assert torch.equal(VIDEO.unpack(packed), latents)
    for wrong in (latents, packed.expand(2, -1, -1, -1, -1), packed[:, :4]):
        with pytest.raises(InputError, match=r"Expected latents as \[1, 16, frames, height, width\], found"):
            VIDEO.unpack(wrong)


@pytest.mark.parametrize("kind", KINDS)
def test_a_latent_is_what_the_vae_was_trained_on(tiny_wan: Folder, kind: str) -> None:
    """ComfyUI's own decoder of Wan takes latents with the mean and the spread that the VAE gave them."""
    model: VideoModel = open_model(tiny_wan(kind))
    vae = model.checkpoint.parts["vae"].config
    latents = torch.zeros(model.latent.shape(64, 64, 5))
    latent = model.to_latent(latents)
    assert torch.equal(latent[0, :, 0, 0, 0], torch.tensor(vae["latents_mean"]))
    spread = model.to_latent(torch.ones_like(latents)) - latent
    assert torch.allclose(spread[0, :, 1, 0, 0], torch.tensor(vae["latents_std"]), atol=1e-6)
    assert model.from_latent(latent).abs().max() == 0


@pytest.mark.parametrize("size", [(500, 300), (300, 500), (64, 48), (32, 32), (33, 31), (20, 90)], ids=str)
def test_clip_sees_what_the_published_processor_shows_it(tiny_wan: Folder, size: tuple[int, int]) -> None:
    from transformers import CLIPImageProcessorPil

    picture = Image.effect_noise(size, 80).convert("RGB")
    processor = CLIPImageProcessorPil.from_pretrained(tiny_wan("wan21") / "image_processor")
    expected = processor(images=picture, do_normalize=False, do_rescale=False, return_tensors="pt").pixel_values[0]
    found = torch.frombuffer(bytearray(middle_square(picture, 32).tobytes()), dtype=torch.uint8).reshape(32, 32, 3)
    assert (found.movedim(-1, 0).float() - expected).abs().max() == 0


# Flow matching.

FLOW = {"_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction", "flow_shift": 3.0}


@pytest.mark.parametrize("name", ["unipc", "euler", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [1, 4, 20])
def test_a_perfect_model_of_the_flow_leads_to_the_clean_latents(name: str, steps: int) -> None:
    """Its prediction is the noise less what it hides, the same at every step."""
    clean, noise = (torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    settings = SamplerSettings(steps, name)
    scheduler, generator = make_scheduler(settings, FLOW), torch.Generator()
    found = sample(lambda *_: noise - clean, scheduler, noise, settings, generator, lambda *_: None)
    # Diffusers' DPM++ takes the noise for a thousandth less than it is.
    missed = 1 - float(scheduler.sigmas[0])
    assert (found - clean).abs().max() <= (missed + 1e-5) * (noise - clean).abs().max()


@pytest.mark.parametrize("name", ["unipc", "euler", "dpmpp_2m"])
def test_latents_of_the_flow_go_through_its_last_steps(name: str) -> None:
    clean, noise = (torch.randn(3, 16, 4, 4, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    settings, seen = SamplerSettings(20, name, strength=0.25), list[torch.Tensor]()
    scheduler = make_scheduler(settings, FLOW)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return noise - clean

    found = sample(denoise, scheduler, noise, settings, torch.Generator(), lambda *_: None, clean)
    sigma = float(scheduler.sigmas[15])
    assert len(seen) == 5 and 0.2 < sigma < 0.8
    torch.testing.assert_close(seen[0], (1 - sigma) * clean + sigma * noise)
    assert (found - clean).abs().max() <= 1e-4


@pytest.mark.parametrize("shift", [1.0, 3.0, 5.0])
def test_the_shift_moves_the_steps_towards_the_noise(shift: float) -> None:
    even = [1.0, 0.75025, 0.5005, 0.25075]
    moved = [shift * sigma / (1 + (shift - 1) * sigma) for sigma in even]
    for name in ("unipc", "euler"):
        scheduler = make_scheduler(SamplerSettings(4, name, shift=shift), FLOW)
        assert scheduler.sigmas[:4].tolist() == pytest.approx(moved, abs=1e-4)
        for config in (FLOW, {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}):
            own, same = (make_scheduler(SamplerSettings(4, name, shift=each), config) for each in (None, 3.0))
            assert torch.equal(own.sigmas, same.sigmas), "the published shift holds unless one says otherwise"


@pytest.mark.parametrize("shift", [0.0, -1.0, float("nan"), 101.0, True, "3"])
def test_a_shift_that_is_none_is_refused(shift: Any) -> None:
    with pytest.raises(InputError, match="Shift is a number from 0.01 to 100"):
        SamplerSettings(4, "unipc", shift=shift)


def test_flow_and_noise_do_not_mix() -> None:
    with pytest.raises(InputError, match="Only a model of flow matching has steps to shift, found a shift of 5."):
        make_scheduler(SamplerSettings(4, "ddim", shift=5.0), {"prediction_type": "v_prediction"})
    with pytest.raises(InputError, match="The schedulers of flow matching are unipc, euler, dpmpp_2m, found ddim."):
        make_scheduler(SamplerSettings(4, "ddim"), FLOW)

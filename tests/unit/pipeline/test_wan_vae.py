"""Wan's VAE in parts: diffusers' result whatever the chunks, for both of its forms; the grey tail's end."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import CheckpointError
from i2v_tensorrt.pipeline.decode import decode
from i2v_tensorrt.pipeline.models.wan.causal_vae import TIME_FACTOR, decode_causal, encode_picture
from i2v_tensorrt.pipeline.models.wan.vae import vae_networks
from i2v_tensorrt.tests.helpers.wan import FORMS, VaeRun, tiny_vae

GATE = 1e-5
# Latent frames, height and width in latents.
SHAPES = [(1, 4, 4), (2, 3, 5), (4, 4, 2), (6, 2, 3)]

pytestmark = pytest.mark.parametrize("form", FORMS)


def quiet(done: int, total: int) -> None:
    """Watches no progress."""


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def factor(vae: Any) -> int:
    return 8 * (vae.config.patch_size or 1)


def scales(vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
    mean, std = (torch.tensor(vae.config[f"latents_{name}"]).reshape(1, -1, 1, 1, 1) for name in ("mean", "std"))
    return mean, std


def latents_of(vae: Any, shape: tuple[int, int, int]) -> torch.Tensor:
    frames, height, width = shape
    return draw(frames, vae.config.z_dim, height, width)


def diffusers_frames(vae: Any, latents: torch.Tensor) -> torch.Tensor:
    """What diffusers' pipeline decodes, [frames, height, width, 3] in 0..1."""
    mean, std = scales(vae)
    decoded = vae.decode(latents.transpose(0, 1)[None] * std + mean).sample
    return decoded[0].permute(1, 2, 3, 0) / 2 + 0.5


def diffusers_latents(vae: Any, video: torch.Tensor) -> torch.Tensor:
    """What diffusers' pipeline encodes of video [frames, 3, height, width], [latent frames, z, h, w]."""
    mean, std = scales(vae)
    return ((vae.encode(video.transpose(0, 1)[None]).latent_dist.mode() - mean) / std)[0].transpose(0, 1)


def ours(vae: Any, latents: torch.Tensor, run: Any, chunk: int = 2) -> torch.Tensor:
    return decode(latents, decode_causal(run), chunk, quiet, factor=factor(vae), time_factor=TIME_FACTOR)


def off(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
def test_decoded_frames_are_those_of_diffusers(form: str, shape: tuple[int, int, int]) -> None:
    vae = tiny_vae(form)
    latents = latents_of(vae, shape)
    assert off(ours(vae, latents, VaeRun(vae)), diffusers_frames(vae, latents)) <= GATE


@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_chunks_of_any_size_give_the_same_frames(form: str, chunk: int) -> None:
    vae, run = tiny_vae(form), VaeRun(tiny_vae(form))
    latents = latents_of(vae, (6, 3, 4))
    assert off(ours(vae, latents, run, chunk), ours(vae, latents, VaeRun(vae), 5)) <= GATE
    assert run.calls == ["vae_decoder_first"] + ["vae_decoder_next"] * -(-5 // chunk)


def test_running_out_of_memory_loses_neither_frames_nor_caches(form: str) -> None:
    vae, run, sizes = tiny_vae(form), VaeRun(tiny_vae(form)), []
    latents = latents_of(vae, (6, 3, 4))

    def short_of_memory(component: str, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        sizes.append(len(inputs["latents"]))
        found = run(component, inputs)
        if len(inputs["latents"]) > 1:  # after the work is done, where a careless caller has kept part of it
            raise torch.cuda.OutOfMemoryError("injected")
        return found

    assert off(ours(vae, latents, short_of_memory, 4), ours(vae, latents, VaeRun(vae), 4)) <= GATE
    assert sizes == [1, 4, 2, 1, 1, 1, 1, 1]


def test_each_cache_is_needed_and_so_is_its_order(form: str) -> None:
    vae, run = tiny_vae(form), VaeRun(tiny_vae(form))
    latents = latents_of(vae, (3, 3, 4))
    right = diffusers_frames(vae, latents)
    names = [tensor.name for tensor in run.networks["vae_decoder_next"].inputs[1:]]
    assert names == [f"cache_{level}" for level in range(4)]

    def spoiled(name: str, spoil: Any) -> torch.Tensor:
        def one_spoiled(component: str, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
            return run(component, {key: spoil(value) if key == name else value for key, value in inputs.items()})

        return ours(vae, latents, one_spoiled, 1)

    for name in names:
        assert off(spoiled(name, lambda cache: cache), right) <= GATE
        assert off(spoiled(name, torch.zeros_like), right) > 100 * GATE, f"{name} is dropped unseen"
        assert off(spoiled(name, lambda cache: cache.flip(2)), right) > 100 * GATE, f"{name}'s frames change unseen"
        assert off(spoiled(name, lambda cache: cache.roll(1, 1)), right) > 100 * GATE, f"{name}'s layers change unseen"


def test_latents_in_another_order_are_another_video(form: str) -> None:
    vae = tiny_vae(form)
    latents = latents_of(vae, (3, 3, 4))
    swapped = ours(vae, latents[[0, 2, 1]], VaeRun(vae))
    assert off(swapped[:1], diffusers_frames(vae, latents)[:1]) <= GATE
    assert off(swapped, diffusers_frames(vae, latents)) > 100 * GATE


@pytest.mark.parametrize("shape", SHAPES)
def test_any_video_is_encoded_as_by_diffusers(form: str, shape: tuple[int, int, int]) -> None:
    vae, run = tiny_vae(form), VaeRun(tiny_vae(form))
    frames, height, width = shape
    video = draw(1 + (frames - 1) * TIME_FACTOR, 3, height * factor(vae), width * factor(vae))
    found = dict(run("vae_encoder_first", {"image": video[:1]}))
    features = [found.pop("features")]
    for start in range(1, len(video), TIME_FACTOR):
        caches = {f"cache_{level}": found[f"kept_{level}"] for level in range(4)}
        found = dict(run("vae_encoder_next", {"image": video[start : start + TIME_FACTOR], **caches}))
        features.append(found.pop("features"))
    latents = run("vae_encoder_last", {"features": torch.cat(features)})["latents"]
    assert off(latents, diffusers_latents(vae, video)) <= GATE


@pytest.mark.parametrize("frames", [1, 3, 12])
def test_a_picture_with_grey_after_it_is_encoded_as_by_diffusers(form: str, frames: int) -> None:
    vae, run, told = tiny_vae(form), VaeRun(tiny_vae(form)), []
    picture = draw(1, 3, 3 * factor(vae), 4 * factor(vae))
    grey = torch.zeros((frames - 1) * TIME_FACTOR, *picture.shape[1:])
    found = encode_picture(run, picture, frames, lambda *step: told.append(step))
    assert off(found, diffusers_latents(vae, torch.cat([picture, grey]))) <= GATE
    assert told[-1] == (frames, frames)


def test_grey_frames_are_encoded_until_they_look_alike(form: str) -> None:
    vae = tiny_vae(form)
    picture = draw(1, 3, 2 * factor(vae), 3 * factor(vae))
    settled = calls_until_settled(vae)
    for frames in (settled + 1, settled + 2, 3 * settled):
        run = VaeRun(vae)
        encode_picture(run, picture, frames, quiet)
        assert run.calls == ["vae_encoder_first"] + ["vae_encoder_next"] * settled + ["vae_encoder_last"]


def calls_until_settled(vae: Any) -> int:
    """The first call whose caches are those of the call before, from how far back each layer sees."""
    in_a_level = 2 * vae.config.num_res_blocks  # convolutions, each of which sees two frames back
    first_alike = 1 + 2 * (1 + 2 * in_a_level)  # frame 1 is the first grey one
    first_alike = -(-(first_alike + 2) // 2)  # frame j of half the rate sees the frames 2j - 2 to 2j
    first_alike += 2 * in_a_level
    return -(-(first_alike + 1) // 2) + 1  # call k leaves the frames 2k - 1 and 2k, and the call after it the same


def test_a_call_that_differs_each_time_is_made_for_every_frame(form: str) -> None:
    vae, run, noise = tiny_vae(form), VaeRun(tiny_vae(form)), torch.Generator().manual_seed(0)

    def noisy(component: str, inputs: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        return {name: value + 1e-6 * torch.rand(1, generator=noise) for name, value in run(component, inputs).items()}

    encode_picture(noisy, draw(1, 3, factor(vae), factor(vae)), 12, quiet)
    assert run.calls.count("vae_encoder_next") == 11


def test_the_first_frames_network_has_a_third_of_each_kernel(form: str) -> None:
    vae = tiny_vae(form)
    first, after = (VaeRun(vae).modules[f"vae_decoder_{name}"].decoder.conv_in for name in ("first", "next"))
    assert first.weight.shape[2] == 1 and after.weight is vae.decoder.conv_in.weight
    assert first.bias is after.bias


@pytest.mark.parametrize(
    "changed", [{"dim_mult": [1, 2]}, {"dim_mult": [1, 2, 2, 2, 2]}, {"z_dim": "many"}, {"patch_size": "x"}]
)
def test_another_configuration_is_refused_in_a_sentence(form: str, changed: dict[str, Any]) -> None:
    saved = {name: value for name, value in tiny_vae(form).config.items() if not name.startswith("_")}
    vae_networks(saved)
    with pytest.raises(CheckpointError, match="^Expected the configuration of Wan's VAE, found: ."):
        vae_networks({**saved, **changed})

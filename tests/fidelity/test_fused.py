"""The fused networks give what the plain ones give, with any set of rewrites, at any shape they take."""

from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.engine_builder.graph.onnx_export import dynamic_shapes
from i2v_tensorrt.pipeline.fused import blocks
from i2v_tensorrt.pipeline.fused.kernels.norm import add_and_measure, channel_moments, scale_and_shift
from i2v_tensorrt.pipeline.fused.kernels.short_attention import short_attention
from i2v_tensorrt.pipeline.models import fused_vae
from i2v_tensorrt.pipeline.models.i2vgen_xl.fused import DENOISER_REWRITES, FusedDenoiser
from i2v_tensorrt.pipeline.models.i2vgen_xl.model import I2VGenXL
from i2v_tensorrt.pipeline.models.i2vgen_xl.networks import DenoiserNetwork

EXACT = 1e-5
"""Relative to the greatest output; float32 rounding leaves some 1e-6."""
SHAPES = [(2, 4, 8, 8), (2, 1, 16, 8), (1, 5, 8, 24), (2, 17, 8, 8)]
"""Branches, frames, height and width in latents."""


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> I2VGenXL:
    return I2VGenXL.open(tiny_folder)


@pytest.fixture(scope="module")
def unet(model: I2VGenXL) -> Any:
    return model.part("unet", "fp32")


@pytest.fixture(scope="module")
def vae(model: I2VGenXL) -> Any:
    return model.part("vae", "fp32")


def denoiser_inputs(shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """The denoiser's inputs; all but the context are the same in both branches, as they are in a clip."""
    batch, frames, height, width = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def shared(*dims: int) -> torch.Tensor:
        return torch.randn(1, *dims, generator=generator).expand(batch, *dims)

    return {
        "sample": shared(4, frames, height, width),
        "timestep": torch.full((batch,), 421.0),
        "image_cond": shared(4, frames, height, width),
        "fps_emb": shared(128),
        "context": torch.randn(batch, 145, 32, generator=generator),
    }


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("count", range(1, len(DENOISER_REWRITES) + 1))
@torch.no_grad()
def test_every_rewrite_of_the_core_keeps_the_result(unet: Any, shape: tuple[int, ...], count: int) -> None:
    inputs = denoiser_inputs(shape)
    assert distance(FusedDenoiser(unet, DENOISER_REWRITES[:count])(**inputs), DenoiserNetwork(unet)(**inputs)) < EXACT


@pytest.mark.parametrize("name", DENOISER_REWRITES)
@torch.no_grad()
def test_each_rewrite_of_the_core_works_alone(unet: Any, name: str) -> None:
    inputs = denoiser_inputs((2, 3, 8, 8))
    assert distance(FusedDenoiser(unet, (name,))(**inputs), DenoiserNetwork(unet)(**inputs)) < EXACT


@torch.no_grad()
def test_a_lean_core_listens_to_every_input(unet: Any) -> None:
    inputs = denoiser_inputs((2, 3, 8, 8))
    denoiser = FusedDenoiser(unet, DENOISER_REWRITES)
    before = denoiser(**inputs)
    for name, value in inputs.items():
        assert distance(denoiser(**{**inputs, name: value + 0.5 * (1 + value.abs())}), before) > 1e-4, name


@torch.no_grad()
def test_a_disturbed_layer_is_noticed(unet: Any) -> None:
    """The comparison's own control: a norm that is off by 1e-2 is a hundred times above the limit."""
    inputs, weight = denoiser_inputs((2, 3, 8, 8)), unet.down_blocks[0].temp_convs[0].conv2[0].weight
    expected = DenoiserNetwork(unet)(**inputs)
    weight.mul_(1.01)
    try:
        assert distance(FusedDenoiser(unet, DENOISER_REWRITES)(**inputs), expected) > 10 * EXACT
    finally:
        weight.div_(1.01)


@pytest.mark.parametrize("count", range(1, len(fused_vae.REWRITES) + 1))
@pytest.mark.parametrize("shape", [(1, 4, 8, 8), (3, 4, 8, 12)])
@torch.no_grad()
def test_every_rewrite_of_the_decoder_keeps_the_result(
    model: I2VGenXL, vae: Any, shape: tuple[int, ...], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blocks, "PLAIN_ATTENTION_WIDTH", 8)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    expected = model.load("vae_decoder", "fp32")(latents)
    assert distance(fused_vae.FusedVaeDecoder(vae, fused_vae.REWRITES[:count])(latents), expected) < EXACT


@pytest.mark.parametrize("together", [8, 1024], ids=["one by one", "together"])
@torch.no_grad()
def test_phases_are_an_upsampled_convolution(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "JOINED_PHASES_WIDTH", together)
    conv = torch.nn.Conv2d(6, 10, 3, padding=1)
    x = torch.randn(2, 3, 5, 7, 6)
    near = torch.nn.functional.interpolate(x.flatten(0, 1).permute(0, 3, 1, 2), scale_factor=2.0, mode="nearest")
    expected = torch.nn.functional.conv2d(near, conv.weight, None, 1, 1).permute(0, 2, 3, 1).unflatten(0, (2, 3))
    assert distance(blocks._phases(x, conv.weight), expected) < EXACT


@pytest.mark.parametrize("items", [1, 3], ids=["by frame", "over frames"])
@pytest.mark.parametrize("offset", [None, 1, 2], ids=["no offset", "one for all", "one a batch item"])
@torch.no_grad()
def test_scale_and_shift_are_group_norm(items: int, offset: int | None) -> None:
    """With means far from zero, where a sum of squares would lose its last digits."""
    x = torch.randn(6, 20, 16) + 50 * torch.randn(16)
    norm = torch.nn.GroupNorm(4, 16)
    torch.nn.init.normal_(norm.weight)
    waiting = None if offset is None else torch.randn(offset, 16)
    scale, shift = scale_and_shift(channel_moments(x), 20, items, waiting, norm)
    found = x.unflatten(0, (-1, items)) * scale[:, None, None] + shift[:, None, None]
    added = x if waiting is None else x + waiting.repeat_interleave(6 // len(waiting), 0)[:, None]
    expected = norm(added.unflatten(0, (-1, items)).flatten(1, 2).double().transpose(1, 2).float())
    assert distance(found.flatten(1, 2), expected.transpose(1, 2)) < 1e-4


@pytest.mark.parametrize("other", [False, True])
def test_add_and_measure_adds_and_measures(other: bool) -> None:
    x, bias = torch.randn(2, 9, 8), torch.randn(8)
    more = torch.randn(2, 9, 8) if other else None
    total, moments = add_and_measure(x, more, bias)
    torch.testing.assert_close(total, x + bias if more is None else x + more + bias)
    torch.testing.assert_close(moments, channel_moments(total))


def test_joined_moments_are_those_of_the_joined() -> None:
    one, two = torch.randn(1, 3, 4, 4, 8), torch.randn(2, 3, 4, 4, 16)
    on = frozenset({"channel_norm"})
    both = blocks.joined(blocks.measured(one, on), blocks.measured(two, on))
    again = blocks.measured(both.x, on)
    assert both.x.shape == (2, 3, 4, 4, 24)
    torch.testing.assert_close(both.moments, again.moments)


def test_short_attention_is_attention_among_tokens() -> None:
    q, k, v = torch.randn(3, 2, 5, 7, 3, 16)
    found = short_attention(q, k, v)
    weights = (torch.einsum("bsphd,btphd->bphst", q, k) / 4).softmax(-1)
    torch.testing.assert_close(found, torch.einsum("bphst,btphd->bsphd", weights, v))


def test_weights_keep_their_values_and_change_their_layout(unet: Any) -> None:
    before = {name: value.clone() for name, value in unet.state_dict().items()}
    blocks.to_channels_last(unet)
    assert all(torch.equal(value, before[name]) for name, value in unet.state_dict().items())
    assert unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("tokens", [1, 5, 8, 17, 63, 100])
@torch.no_grad()
def test_attention_in_parts_is_attention_for_any_number_of_tokens(tokens: int) -> None:
    q, k, v = torch.randn(3, 2, 1, tokens, 24, generator=torch.Generator().manual_seed(tokens))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    assert distance(blocks._plain_attention(q, k, v), expected) < EXACT


@torch.no_grad()
def test_a_decoder_with_attention_in_parts_is_exported_for_a_range(
    model: I2VGenXL, vae: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which the engine is made; places that do not divide by the number of parts are among the sizes."""
    monkeypatch.setattr(blocks, "PLAIN_ATTENTION_WIDTH", 8)
    cut: list[int] = []
    attention = blocks._plain_attention
    monkeypatch.setattr(blocks, "_plain_attention", lambda *tensors: (cut.append(1), attention(*tensors))[1])
    decoder, spec = fused_vae.FusedVaeDecoder(vae, ("plain_attention",)), model.components["vae_decoder"].spec
    (tensor,) = spec.inputs
    shapes = dynamic_shapes(spec.inputs, ShapeProfile({**spec.limits.ranges, "chunk": DimRange(1, 2, 8)}))
    program = torch.export.export(decoder, (torch.randn(2, 4, 16, 24),), dynamic_shapes=(shapes[tensor.name],))
    assert cut
    exported = program.module()
    for shape in ((1, 4, 8, 8), (3, 4, 9, 11), (2, 4, 16, 24)):
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        assert distance(exported(latents), model.load("vae_decoder", "fp32")(latents)) < EXACT

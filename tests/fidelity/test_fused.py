"""Every family's fused networks give what its plain ones give, with any set of rewrites, at any shape they take."""

from collections.abc import Callable

import pytest
import torch

from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.graph.onnx_export import dynamic_shapes, example_inputs
from i2v_tensorrt.pipeline.fused import blocks
from i2v_tensorrt.pipeline.models.base import VideoModel

from ..helpers.agreement import Sizes
from .families import FAMILIES, volume

EXACT = 1e-5
"""Relative to the greatest output; float32 rounding leaves some 1e-6."""
SMALL = volume(2, 3, 8, 8)
FUSED = [name for name, family in FAMILIES.items() if family.fused]
Open = Callable[[str], VideoModel]


def inputs_of(model: VideoModel, component: str, sizes: Sizes) -> dict[str, torch.Tensor]:
    """Random ones; what guidance shares is the same in both branches, as it is in a clip."""
    network = model.components[component].spec
    rewrites = model.known_rewrites[component]
    return example_inputs(EngineSpec(network, network.limits, "fp32", rewrites), dict(sizes), sum(sizes.values()))


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


def off(model: VideoModel, component: str, rewrites: tuple[str, ...], sizes: Sizes) -> float:
    """How far the component with these rewrites is from the plain one."""
    inputs = inputs_of(model, component, sizes)
    return distance(model.load(component, "fp32", rewrites)(**inputs), model.load(component, "fp32")(**inputs))


@pytest.mark.parametrize(
    ("name", "component", "sizes"),
    [
        (name, *row)
        for name in FUSED
        for row in ((key, each) for key, all in FAMILIES[name].fused.items() for each in all)
    ],
)
@torch.no_grad()
def test_every_rewrite_keeps_the_result(
    model: Open, monkeypatch: pytest.MonkeyPatch, name: str, component: str, sizes: Sizes
) -> None:
    """One after the other is switched on, in the order in which they pay."""
    monkeypatch.setattr(blocks, "PLAIN_ATTENTION_WIDTH", 8)
    rewrites = model(name).known_rewrites[component]
    assert rewrites
    for count in range(1, len(rewrites) + 1):
        assert off(model(name), component, rewrites[:count], sizes) < EXACT, rewrites[count - 1]


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_each_rewrite_of_the_denoiser_works_alone(model: Open, name: str) -> None:
    for rewrite in model(name).known_rewrites["core"]:
        assert off(model(name), "core", (rewrite,), SMALL) < EXACT, rewrite


@pytest.mark.parametrize("name", FUSED)
@torch.no_grad()
def test_a_fused_denoiser_depends_on_every_input(model: Open, name: str) -> None:
    inputs = inputs_of(model(name), "core", SMALL)
    denoiser = model(name).load("core", "fp32", model(name).known_rewrites["core"])
    before = denoiser(**inputs)
    for tensor, value in inputs.items():
        assert distance(denoiser(**{**inputs, tensor: value + 0.5 * (1 + value.abs())}), before) > 1e-4, tensor


@pytest.mark.parametrize(
    ("name", "weight", "change"),
    [
        ("i2vgen_xl", "down_blocks.0.temp_convs.0.conv2.0.weight", 1.01),
        ("svd", "down_blocks.0.resnets.0.time_mixer.mix_factor", -1.0),
    ],
)
@torch.no_grad()
def test_control_a_disturbed_layer_is_seen(model: Open, name: str, weight: str, change: float) -> None:
    """A norm that is off by a hundredth, a share of time that is the wrong one."""
    inputs, unet = inputs_of(model(name), "core", SMALL), model(name).part("unet", "fp32")
    expected = model(name).load("core", "fp32")(**inputs)
    parameter = unet.get_parameter(weight)
    parameter.mul_(change)
    try:
        found = model(name).load("core", "fp32", model(name).known_rewrites["core"])(**inputs)
        assert distance(found, expected) > 10 * EXACT
    finally:
        parameter.div_(change)


@torch.no_grad()
def test_a_fused_denoiser_is_exported_for_either_number_of_branches(model: Open) -> None:
    """Traced with both: a number that is read as Python's is burnt in, and one branch comes back as two."""
    family = model("i2vgen_xl")
    rewrites = family.known_rewrites["core"]
    network, spec = family.load("core", "fp32", rewrites), family.components["core"].spec
    shapes = dynamic_shapes(spec.inputs, spec.limits)
    inputs = inputs_of(family, "core", volume(2, 3, 16, 12))
    exported = torch.export.export(network, (), inputs, dynamic_shapes=shapes, strict=False).module()
    for sizes in (volume(1, 3, 16, 12), volume(2, 2, 8, 8)):
        given = inputs_of(family, "core", sizes)
        assert distance(exported(**given), family.load("core", "fp32")(**given)) < EXACT


@torch.no_grad()
def test_a_decoder_with_attention_in_parts_is_exported_for_a_range(
    model: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of which the engine is made; places that do not divide by the number of parts are among the sizes."""
    monkeypatch.setattr(blocks, "PLAIN_ATTENTION_WIDTH", 8)
    cut: list[int] = []
    attention = blocks._plain_attention
    monkeypatch.setattr(blocks, "_plain_attention", lambda *tensors: (cut.append(1), attention(*tensors))[1])
    family = model("i2vgen_xl")
    decoder = family.load("vae_decoder", "fp32", ("plain_attention",))
    spec = family.components["vae_decoder"].spec
    (tensor,) = spec.inputs
    shapes = dynamic_shapes(spec.inputs, ShapeProfile({**spec.limits.ranges, "chunk": DimRange(1, 2, 8)}))
    program = torch.export.export(decoder, (torch.randn(2, 4, 16, 24),), dynamic_shapes=(shapes[tensor.name],))
    assert cut
    exported = program.module()
    for shape in ((1, 4, 8, 8), (3, 4, 9, 11), (2, 4, 16, 24)):
        latents = torch.randn(shape, generator=torch.Generator().manual_seed(2))
        assert distance(exported(latents), family.load("vae_decoder", "fp32")(latents)) < EXACT

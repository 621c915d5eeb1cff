"""A deep cache's two networks: the shallow part over features of the same call is the whole denoiser."""

from collections.abc import Callable

import pytest
import torch

from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.model_networks import DEEP, SHALLOW

from .families import FAMILIES, volume

EXACT = 1e-5
"""Relative to the greatest output."""
SIZES = {"even": volume(2, 3, 8, 8), "one branch": volume(1, 2, 8, 16), "odd sides": volume(2, 2, 9, 11)}
CASES = [(shape, fused) for shape in SIZES for fused in (False, True) if not (fused and shape == "odd sides")]
"""Fused networks take sides that halve evenly."""
Open = Callable[[str], VideoModel]


def inputs_of(model: VideoModel, sizes: dict[str, int], seed: int) -> dict[str, torch.Tensor]:
    """Random inputs of the shallow part; what guidance shares is the same in both branches."""
    network = model.components[SHALLOW].spec
    spec = EngineSpec(network, network.limits, "fp32", model.known_rewrites["core"])
    return example_inputs(spec, sizes, seed)


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("name", ["i2vgen_xl", "svd"])
@pytest.mark.parametrize(("shape", "fused"), CASES)
@torch.no_grad()
def test_features_of_the_same_call_give_the_same_result(model: Open, name: str, shape: str, fused: bool) -> None:
    opened = model(name)
    rewrites = opened.known_rewrites["core"] if fused else ()
    core, whole, shallow = (opened.load(part, "fp32", rewrites) for part in ("core", DEEP, SHALLOW))
    inputs = inputs_of(opened, dict(SIZES[shape]), 1)
    strange = inputs.pop("deep")
    expected = opened.load("core", "fp32")(**inputs)
    prediction, deep = whole(**inputs)
    assert distance(core(**inputs), expected) < EXACT and distance(prediction, expected) < EXACT
    assert distance(shallow(**inputs, deep=deep), expected) < EXACT
    # Features of another call, and those of the branches the other way round, are seen not to be.
    assert distance(shallow(**inputs, deep=strange), expected) > 1e-2
    if len(deep) > 1:
        assert distance(shallow(**inputs, deep=deep.flip(0)), expected) > 1e-4


@pytest.mark.parametrize("name", ["i2vgen_xl", "svd"])
def test_the_shallow_part_holds_less_than_half_of_the_weights(model: Open, name: str) -> None:
    opened = model(name)
    core, shallow = (sum(p.numel() for p in opened.load(part, "fp32").parameters()) for part in ("core", SHALLOW))
    assert shallow < core / 2


def test_every_family_of_the_table_has_both_or_neither(model: Open) -> None:
    for name in FAMILIES:
        components = model(name).components
        assert (DEEP in components) == (SHALLOW in components)
        if DEEP in components:
            deep = next(tensor for tensor in components[DEEP].spec.outputs if tensor.name == "deep")
            assert deep in components[SHALLOW].spec.inputs

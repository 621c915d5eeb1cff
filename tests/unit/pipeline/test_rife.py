"""RIFE's form: names, scales by the file, precision of positions, and the weights that come with the pack."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.common.pack_paths import INTERPOLATION
from i2v_tensorrt.demo_model.training.interpolation_measure import blend, decibels, middle_of, pairs
from i2v_tensorrt.pipeline.filters.rife import LITE_SCALES, SCALES, Rife, load_network, looked_at, open_rife, warp

CPU = torch.device("cpu")
TINY = (8, 8, 8, 8, 8)


def renamed(network: Rife) -> dict[str, torch.Tensor]:
    """As the authors' training saves it."""
    raw = {f"module.{name.replace('blocks.', 'block')}": value for name, value in network.published().items()}
    return raw | {"module.teacher.conv.weight": torch.zeros(1), "module.caltime.0.bias": torch.zeros(1)}


def test_weights_of_every_naming_make_the_same_network() -> None:
    torch.manual_seed(0)
    network = Rife(TINY)
    pictures = torch.rand(2, 3, 64, 64)
    time = torch.full((2, 1, 1, 1), 0.3)
    for tensors in (network.published(), renamed(network)):
        assert torch.equal(
            open_rife(tensors)(pictures, pictures.flip(0), time), network(pictures, pictures.flip(0), time)
        )


def test_the_scales_of_lite_weights_follow_from_their_last_block() -> None:
    lite = open_rife(Rife((32, 24, 16, 12, 24)).published())
    assert (lite.flow.scales, lite.flow.align) == (LITE_SCALES, 128)
    plain = open_rife(Rife(TINY).published())
    assert (plain.flow.scales, plain.flow.align) == (SCALES, 64)


@pytest.mark.parametrize("lacking", ["encode.cnn3.weight", "blocks.4.conv0.1.0.weight"])
def test_another_network_is_refused_in_a_sentence(lacking: str) -> None:
    tensors = Rife(TINY).published()
    del tensors[lacking]
    with pytest.raises(InputError, match="Expected a network of the form of RIFE 4.25"):
        open_rife(tensors)


def test_tensors_of_another_shape_are_refused_in_a_sentence() -> None:
    tensors = Rife(TINY).published() | {"blocks.1.convblock.0.beta": torch.ones(1, 9, 1, 1)}
    with pytest.raises(InputError, match="do not fit it: size mismatch"):
        open_rife(tensors)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_positions_are_exact_in_half_precision(dtype: torch.dtype) -> None:
    width = 1920
    ramp = torch.linspace(0, 1, width).expand(1, 1, 4, width)
    flow = torch.zeros(1, 2, 4, width)
    flow[:, 0] = 10.25
    moved = warp(ramp.to(dtype), flow)[0, 0, 0, 500:1500].float()
    exact = warp(ramp.to(dtype).float(), flow)[0, 0, 0, 500:1500]
    assert (moved - exact).abs().max() <= torch.finfo(dtype).eps / 2


def test_a_flow_moves_by_its_pixels_and_edges_hold() -> None:
    images = torch.arange(8.0).expand(1, 1, 8, 8)
    flow = torch.zeros(1, 2, 8, 8)
    flow[:, 0] = 2.5
    assert torch.allclose(warp(images, flow)[0, 0, 0], torch.tensor([2.5, 3.5, 4.5, 5.5, 6.5, 7, 7, 7]), atol=1e-5)


def test_the_pack_s_own_network_beats_blending_where_things_move() -> None:
    network = open_rife(load_file(INTERPOLATION)).float()
    first, second, truth = pairs(6, 8, CPU)
    found = decibels(middle_of(network), first, second, truth).mean()
    assert found > decibels(blend, first, second, truth).mean() + 5
    assert INTERPOLATION.stat().st_size < 6_000_000


def test_each_component_loads_alone(tmp_path: Path) -> None:
    path = f"{tmp_path}/rife.safetensors"
    network = Rife(TINY).eval()
    save_file(network.published(), path)
    features = load_network(path, "features", "fp32")
    flow = load_network(path, "interpolation", "fp16")
    picture = torch.rand(1, 3, 64, 64)
    assert torch.allclose(features(picture), network.encode(picture), atol=1e-6)
    kernels = [weight for weight in flow.parameters() if weight.ndim == 4 and weight.shape[1] > 1]
    assert {weight.dtype for weight in kernels} == {torch.float16}
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    assert network.encode.cnn1.weight.is_contiguous(), "the file's network is left as it is"


@pytest.mark.parametrize("scale", [1, 2, 3, 4, 8, 16, 32])
def test_the_pixels_that_a_shrinking_looks_at_give_the_same(scale: int) -> None:
    images = torch.rand(2, 3, 96, 192)
    seen = looked_at(images, scale)
    whole = torch.nn.functional.interpolate(images, scale_factor=1 / scale, mode="bilinear")
    again = torch.nn.functional.interpolate(seen, scale_factor=whole.shape[-1] / seen.shape[-1], mode="bilinear")
    assert torch.equal(again, whole)
    assert seen.shape == (images.shape if scale in (1, 2, 3) else (2, 3, 192 // scale, 384 // scale))


def refined_everywhere(network: Rife, first: torch.Tensor, second: torch.Tensor, time: torch.Tensor) -> torch.Tensor:
    """The published way: every block's inputs at full size, then shrunk."""
    flow, plane = None, time.to(first.dtype).expand(-1, 1, *first.shape[-2:])
    pictures, logit = (first, second), torch.empty(0)
    known = network.encode(first), network.encode(second)
    x = torch.cat([first, second, *known, plane], dim=1)
    for block, scale in zip(network.flow.blocks, network.flow.scales, strict=True):
        small = torch.nn.functional.interpolate(x, scale_factor=1 / scale, mode="bilinear") if scale > 1 else x
        if flow is not None:
            less = torch.nn.functional.interpolate(flow, scale_factor=1 / scale, mode="bilinear") if scale > 1 else flow
            small = torch.cat([small, less.to(x.dtype) / scale], dim=1)
        found = block.lastconv(block.convblock(block.conv0(small)))
        large = torch.nn.functional.interpolate(found, scale_factor=scale, mode="bilinear") if scale > 1 else found
        change, logit, state = large.split([4, 1, 8], dim=1)
        flow = change.float() * scale + (0 if flow is None else flow)
        pictures = warp(first, flow[:, :2]), warp(second, flow[:, 2:])
        features = warp(known[0], flow[:, :2]), warp(known[1], flow[:, 2:])
        x = torch.cat([*pictures, *features, plane, logit, state], dim=1)
    return torch.lerp(pictures[1], pictures[0], torch.sigmoid(logit))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("widths", [TINY, (12, 8, 8, 8, 24)])
def test_looking_only_where_it_counts_changes_nothing(widths: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    network = Rife(widths).to(dtype).eval()
    first, second = torch.rand(2, 2, 3, 128, 256).to(dtype)
    time = torch.tensor([0.25, 0.5]).view(2, 1, 1, 1)
    with torch.no_grad():
        assert torch.equal(network(first, second, time), refined_everywhere(network, first, second, time))

"""Interpolation over engines: built, compared on scenes, and equal to the network itself."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs, scene
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.filters.rife import Rife
from i2v_tensorrt.pipeline.filters.timing import Timing, by_factor
from i2v_tensorrt.runtime.engines.engine_set import Engines
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.filters.interpolate import interpolation
from i2v_tensorrt.runtime.filters.networks import FEATURES, INTERPOLATION, SHIFT, RifeNetworks, exact_batch

CPU = torch.device("cpu")
TINY = (16, 12, 8, 8, 8)


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> RifeNetworks:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("rife") / "tiny.safetensors"
    save_file(Rife(TINY).published(), path)
    return RifeNetworks(path)


def engines(networks: RifeNetworks, folder: Path, backend: str) -> Engines[RifeNetworks]:
    policy = EnginePolicy(backend, "fp32", "exact", "build")
    return Engines(networks, EngineStore(folder), policy, CPU, report=lambda stage, done: None)


def clip(count: int = 4, height: int = 50, width: int = 70) -> list[torch.Tensor]:
    """Frames of a scene that moves evenly."""
    return [scene((3, height, width), (3 * index, -2 * index), 7).permute(1, 2, 0) for index in range(count)]


def by_hand(networks: RifeNetworks, first: torch.Tensor, second: torch.Tensor, time: float) -> torch.Tensor:
    pictures = torch.stack([first, second]).permute(0, 3, 1, 2)
    padded = torch.nn.functional.pad(
        pictures, (0, -70 % 64, 0, -50 % 64), mode="reflect" if 14 < 50 and 58 < 70 else ""
    )
    with torch.no_grad():
        made = networks.network.float()(padded[:1], padded[1:], torch.full((1, 1, 1, 1), time))
    return made[0, :, :50, :70].clamp(0, 1).permute(1, 2, 0)


@pytest.mark.parametrize("backend", ["eager", pytest.param("onnxruntime", marks=pytest.mark.torture)])
def test_the_frames_are_the_network_s(networks: RifeNetworks, tmp_path: Path, backend: str) -> None:
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
    found = engines(networks, tmp_path, backend)
    frames = clip()
    run = interpolation(found, Timing(Fraction(2, 5)), 50, 70)
    made = list(run(frames))
    assert len(made) == 10 and found.describe(INTERPOLATION).startswith(backend), found.take_notes()
    for number in (1, 4, 6):
        position = number * Fraction(2, 5)
        index = int(position)
        wanted = by_hand(networks, frames[index], frames[index + 1], float(position - index))
        assert torch.allclose(made[number], wanted, atol=1e-4)


def test_no_engine_is_built_twice(networks: RifeNetworks, tmp_path: Path) -> None:
    found = engines(networks, tmp_path, "eager")
    once = list(interpolation(found, by_factor(2), 50, 70)(clip()))
    again = list(interpolation(found, by_factor(2), 50, 70)(clip()))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


def test_examples_are_one_scene_that_moves(networks: RifeNetworks) -> None:
    spec = EngineSpec(networks.components[INTERPOLATION].spec, ShapeProfile(), "fp32")
    found = example_inputs(spec, {"pictures": 2, "height": 64, "width": 128}, seed=5)
    x, y = SHIFT
    first, second = found["first"], found["second"]
    assert torch.equal(first[..., : 64 + y, x:], second[..., -y:, : 128 - x])
    assert 0 <= first.min() and first.max() <= 1 and first.std() > 0.1
    assert (first.diff(dim=-1).abs().mean() < 0.1) and not torch.equal(first[0], first[1])
    other = example_inputs(spec, {"pictures": 2, "height": 64, "width": 128}, seed=6)
    assert not torch.equal(first, other["first"])


def test_half_precision_is_judged_fairly_on_scenes(networks: RifeNetworks) -> None:
    """Noise answers noise: there half precision would seem broken, and its pictures are right."""
    spec = EngineSpec(networks.components[FEATURES].spec, ShapeProfile(), "fp32")
    image = example_inputs(spec, {"pictures": 1, "height": 64, "width": 64})["image"]
    whole, half = networks.network.float(), RifeNetworks(networks.path).network.half()
    with torch.no_grad():
        exact, rounded = whole.encode(image), half.encode(image.half()).float()
    assert 20 * torch.log10(exact.norm() / (exact - rounded).norm()) > 50


@pytest.mark.parametrize(
    ("device", "height", "spare_gib", "there", "batch"),
    [
        ("cuda", 512, 100, (), 8),
        ("cuda", 1088, 100, (), 4),
        ("cuda", 4352, 100, (), 1),
        ("cuda", 1088, 3.5, (), 2),
        ("cuda", 1088, 100, (2,), 2),
        ("cuda", 1088, 100, (8,), 4),
        ("cuda", 1088, 0.1, (4,), 1),
        ("cpu", 512, 100, (), 1),
    ],
)
def test_an_engine_s_number_of_pictures_changes_little_with_the_memory(
    networks: RifeNetworks, device: str, height: int, spare_gib: float, there: tuple[int, ...], batch: int
) -> None:
    """Each number is an engine of its own: one that is there for less is taken before another is built."""
    engines: Any = SimpleNamespace(
        device=torch.device(device),
        model=networks,
        precision="fp16",
        memory_manager=SimpleNamespace(spare_bytes=lambda: int(spare_gib * 2**30)),
        catalog=SimpleNamespace(can_build=lambda: True, fitting=lambda _, sizes: sizes["pictures"] in there or None),
    )
    width = 512 if height == 512 else height * 1920 // 1088
    assert exact_batch(engines, INTERPOLATION, {"height": height, "width": width}) == batch

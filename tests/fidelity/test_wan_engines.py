"""Wan's transformers through the same backends: tokens, rotary positions and a timestep for each frame."""

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.clip_sizes import clip_sizes

from ..helpers.agreement import (
    Pair,
    Sizes,
    assert_aotinductor_agrees,
    assert_inputs_move_their_branch_alone,
    assert_untraced_sizes_agree,
    onnxruntime_pair,
)
from ..helpers.toys import CPU

LoadPair = Callable[[str, str], Pair]
"""By kind and component."""
DENOISERS = [("wan21", "core"), ("a14b", "core_late"), ("ti2v", "core")]


def clip(batch: int, frames: int, height: int, width: int) -> Sizes:
    return {"batch": batch, "frames": frames, "latent_height": height, "latent_width": width}


SHAPES = [clip(1, 1, 4, 4), clip(2, 1, 8, 12), clip(2, 21, 4, 6), clip(1, 3, 16, 24), clip(2, 6, 10, 4)]


@pytest.fixture(scope="module")
def pair(tiny_wan: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> LoadPair:
    store = EngineStore(tmp_path_factory.mktemp("engines"))
    return cache(lambda kind, component: onnxruntime_pair(open_model(tiny_wan(kind)), component, store))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "component"), DENOISERS)
def test_onnxruntime_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(
    pair: LoadPair, kind: str, component: str
) -> None:
    assert_untraced_sizes_agree(pair(kind, component), SHAPES)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "component"), DENOISERS)
def test_every_input_of_the_cores_engine_moves_its_output_in_its_branch_alone(
    pair: LoadPair, kind: str, component: str
) -> None:
    assert_inputs_move_their_branch_alone(pair(kind, component)[1], clip(2, 3, 8, 12))


@pytest.mark.torture
@pytest.mark.parametrize("shapes", ["exact", "range"])
@pytest.mark.parametrize(("kind", "component"), DENOISERS)
def test_aotinductor_gives_eager_pytorchs_result(
    tiny_wan: Callable[[str], Path], tmp_path: Path, kind: str, component: str, shapes: str
) -> None:
    model = open_model(tiny_wan(kind))
    assert_aotinductor_agrees(model, component, shapes, clip(2, 4, 8, 16), SHAPES, tmp_path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], VideoModel]:
    """Heads of 128 channels, as published, which TensorRT has attention kernels for."""
    folder, sizes = tmp_path_factory.mktemp("checkpoints"), TinyWanSizes(heads=2, head_dim=128, width=64)
    return cache(lambda kind: open_model(write_tiny_wan(folder / kind, kind, sizes)))


@pytest.fixture(scope="module")
def process() -> Iterator[BuildProcess]:
    with BuildProcess() as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("kind", "component"), [*DENOISERS, ("wan21", "image_encoder")])
def test_tensorrt_rtx_builds_for_a_gpu_that_is_not_here(
    wide: Callable[[str], VideoModel],
    process: BuildProcess,
    tmp_path: Path,
    kind: str,
    component: str,
    precision: str,
    arch: str,
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    model = wide(kind)
    limits, sizes = model.components[component].spec.limits, clip_sizes(model, 64, 64, 9)
    profile = limits.exact({name: size for name, size in sizes.items() if name in limits.ranges})
    spec = EngineSpec(model.components[component].spec, profile, precision)
    request = BuildRequest(spec, model.source(component, precision), TensorRTBackend(), CPU, arch)
    manifest = build_engine(request, EngineStore(tmp_path), process).plan.manifest
    assert set(manifest.files) == {PLAN}
    assert manifest.target.arch == arch and manifest.size_bytes > 100_000


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "shapes"), [("bf16", "range"), ("fp32", "exact")])
def test_tensorrt_rtx_survives_narrow_heads_and_dynamic_sizes(
    process: BuildProcess, tmp_path: Path, precision: str, shapes: str
) -> None:
    """As one Attention of the next opset, these very networks end it by a segmentation fault."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    model = open_model(write_tiny_wan(tmp_path / "narrow", "wan21", TinyWanSizes(head_dim=8, layers=1)))
    network = model.components["core"].spec
    sizes = {name: size for name, size in clip_sizes(model, 64, 64, 9).items() if name in network.limits.ranges}
    profile = network.limits.exact(sizes) if shapes == "exact" else network.limits
    spec = EngineSpec(network, profile, precision)
    request = BuildRequest(spec, model.source("core", precision), TensorRTBackend(), CPU, "sm_89")
    assert set(build_engine(request, EngineStore(tmp_path), process).plan.manifest.files) == {PLAN}

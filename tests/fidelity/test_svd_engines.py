"""Stable Video Diffusion's networks through the same backends: other axes, other constants, the same gates."""

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
from i2v_tensorrt.pipeline.dummies.svd import TinySvdSizes, write_tiny_svd
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

LoadPair = Callable[[str], Pair]
"""By component."""


@pytest.fixture(scope="module")
def model(tiny_svd_folder: Path) -> VideoModel:
    return open_model(tiny_svd_folder)


@pytest.fixture(scope="module")
def pair(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> LoadPair:
    store = EngineStore(tmp_path_factory.mktemp("engines"))
    return cache(lambda component: onnxruntime_pair(model, component, store))


def picture(height: int, width: int) -> Sizes:
    return {"latent_height": height, "latent_width": width}


def clip(batch: int, frames: int, height: int, width: int) -> Sizes:
    return {"batch": batch, "frames": frames, **picture(height, width)}


def chunk(count: int, height: int, width: int) -> Sizes:
    return {"chunk": count, **picture(height, width)}


SHAPES: dict[str, list[Sizes]] = {
    "core": [clip(1, 1, 8, 8), clip(2, 1, 8, 12), clip(2, 25, 8, 10), clip(1, 3, 16, 24), clip(2, 6, 24, 8)],
    "vae_decoder": [chunk(1, 8, 8), chunk(5, 8, 16), chunk(14, 9, 8), chunk(9, 11, 13), chunk(2, 24, 8)],
    "vae_encoder": [picture(8, 9), picture(16, 8), picture(11, 13), picture(9, 24)],
}
slow_if_denoiser = [pytest.param(name, marks=[pytest.mark.slow] if name == "core" else []) for name in SHAPES]


@pytest.mark.parametrize("component", slow_if_denoiser)
def test_onnxruntime_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(pair: LoadPair, component: str) -> None:
    assert_untraced_sizes_agree(pair(component), SHAPES[component])


@pytest.mark.slow
def test_every_input_of_the_cores_engine_moves_its_output_in_its_branch_alone(pair: LoadPair) -> None:
    assert_inputs_move_their_branch_alone(pair("core")[1], clip(2, 3, 8, 12))


@pytest.mark.torture
@pytest.mark.parametrize("shapes", ["exact", "range"])
@pytest.mark.parametrize("component", ["core", "vae_decoder"])
def test_aotinductor_gives_eager_pytorchs_result(
    model: VideoModel, tmp_path: Path, component: str, shapes: str
) -> None:
    small = {**clip(2, 4, 8, 16), **chunk(4, 8, 16)}
    assert_aotinductor_agrees(model, component, shapes, small, SHAPES[component], tmp_path)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> VideoModel:
    """Heads of 64 channels, which TensorRT has attention kernels for."""
    sizes = TinySvdSizes(channels=(64, 128), heads=(1, 2), width=64)
    return open_model(write_tiny_svd(tmp_path_factory.mktemp("checkpoints") / "tiny64", sizes))


@pytest.fixture(scope="module")
def process() -> Iterator[BuildProcess]:
    with BuildProcess() as running:
        yield running


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("component", ["core", "vae_decoder", "vae_encoder", "image_encoder"])
def test_tensorrt_rtx_builds_for_a_gpu_that_is_not_here(
    wide: VideoModel, process: BuildProcess, tmp_path: Path, component: str, precision: str, arch: str
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    limits = wide.components[component].spec.limits
    sizes = clip_sizes(wide, 64, 64, 4)
    profile = limits.exact({name: size for name, size in sizes.items() if name in limits.ranges})
    spec = EngineSpec(wide.components[component].spec, profile, precision)
    request = BuildRequest(spec, wide.source(component, precision), TensorRTBackend(), CPU, arch)
    manifest = build_engine(request, EngineStore(tmp_path), process).plan.manifest
    assert set(manifest.files) == {PLAN}
    assert manifest.target.arch == arch and manifest.size_bytes > 100_000

"""The networks of every family through the backends: eager PyTorch's result at sizes that no export has traced.

I2VGen-XL's are tested backend by backend in `tests/unit/engine_builder`, Wan's VAE in `test_wan_vae_engines.py`.
"""

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
from i2v_tensorrt.engine_builder.store.manifest import Manifest
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.clip_sizes import clip_sizes

from ..helpers.agreement import (
    Pair,
    assert_aotinductor_agrees,
    assert_inputs_move_their_branch_alone,
    assert_untraced_sizes_agree,
    onnxruntime_pair,
)
from ..helpers.toys import CPU
from .families import FAMILIES, chunk, each, volume

Open = Callable[[str], VideoModel]
LoadPair = Callable[[str, str], Pair]
"""By family and component."""
SMALL = {**volume(2, 4, 8, 16), **chunk(4, 8, 16)}


def is_denoiser(component: str) -> bool:
    return component.startswith("core")


def each_engine(denoisers: bool = True, others: bool = True) -> list[tuple[str, str]]:
    return [row for row in each(lambda family: family.engines) if (denoisers if is_denoiser(row[1]) else others)]


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Open:
    return cache(lambda name: open_model(FAMILIES[name].wide(tmp_path_factory.mktemp("checkpoints") / name)))


@pytest.fixture(scope="module")
def pair(model: Open, tmp_path_factory: pytest.TempPathFactory) -> LoadPair:
    store = EngineStore(tmp_path_factory.mktemp("engines"))
    return cache(lambda name, component: onnxruntime_pair(model(name), component, store))


@pytest.fixture(scope="module")
def process() -> Iterator[BuildProcess]:
    with BuildProcess() as running:
        yield running


@pytest.mark.parametrize(
    ("name", "component"),
    [
        *each_engine(denoisers=False),
        *(pytest.param(*row, marks=pytest.mark.slow) for row in each_engine(others=False)),
    ],
)
def test_onnxruntime_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(
    pair: LoadPair, name: str, component: str
) -> None:
    assert_untraced_sizes_agree(pair(name, component), FAMILIES[name].engines[component])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "component"), each_engine(others=False))
def test_every_input_of_a_denoisers_engine_moves_its_output_in_its_branch_alone(
    pair: LoadPair, name: str, component: str
) -> None:
    assert_inputs_move_their_branch_alone(pair(name, component)[1], volume(2, 3, 8, 12))


@pytest.mark.torture
@pytest.mark.parametrize("shapes", ["exact", "range"])
@pytest.mark.parametrize(("name", "component"), [row for row in each_engine() if row[1] != "vae_encoder"])
def test_aotinductor_gives_eager_pytorchs_result(
    model: Open, tmp_path: Path, name: str, component: str, shapes: str
) -> None:
    assert_aotinductor_agrees(model(name), component, shapes, SMALL, FAMILIES[name].engines[component], tmp_path)


def built(
    model: VideoModel, component: str, precision: str, shapes: str, process: BuildProcess, folder: Path, arch: str
) -> Manifest:
    """The manifest of an engine by TensorRT-RTX for a small clip, or for every size."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    network = model.components[component].spec
    sizes = clip_sizes(model, 64, 64, model.latent.num_frames(3))
    exact = network.limits.exact({name: size for name, size in sizes.items() if name in network.limits.ranges})
    spec = EngineSpec(network, exact if shapes == "exact" else network.limits, precision)
    request = BuildRequest(spec, model.source(component, precision), TensorRTBackend(), CPU, arch)
    return build_engine(request, EngineStore(folder), process).plan.manifest


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_86", "sm_89", "sm_120"])
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize(("name", "component"), each(lambda family: family.targets))
def test_tensorrt_rtx_builds_for_a_gpu_that_is_not_here(
    wide: Open, process: BuildProcess, tmp_path: Path, name: str, component: str, precision: str, arch: str
) -> None:
    manifest = built(wide(name), component, precision, "exact", process, tmp_path, arch)
    assert set(manifest.files) == {PLAN}
    assert manifest.target.arch == arch and manifest.size_bytes > 100_000


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "shapes"), [("bf16", "range"), ("fp32", "exact")])
def test_tensorrt_rtx_survives_narrow_heads_and_dynamic_sizes(
    process: BuildProcess, tmp_path: Path, precision: str, shapes: str
) -> None:
    """As one Attention of the next opset, these very networks end it by a segmentation fault."""
    model = open_model(write_tiny_wan(tmp_path / "narrow", "wan21", TinyWanSizes(head_dim=8, layers=1)))
    assert set(built(model, "core", precision, shapes, process, tmp_path, "sm_89").files) == {PLAN}

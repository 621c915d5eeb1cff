"""Wan's VAE and text encoder through the backends: caches in and out, both forms, every size dynamic."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.network_source import NetworkSource
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, NetworkSpec
from i2v_tensorrt.engine_builder.backends.base import Backend
from i2v_tensorrt.engine_builder.backends.inductor.backend import InductorBackend
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs, trace_sizes
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.tests.helpers.wan import FORMS, TEXT, load_network, networks

from ..helpers.toys import CPU

GATE = 1e-5
Sizes = Mapping[str, int]
LIMITS = {
    "chunk": DimRange(1, 2, 6),
    "frames": DimRange(1, 3, 33),
    "tokens": DimRange(1, 24, 512),
    "latent_height": DimRange(2, 4, 64),
    "latent_width": DimRange(2, 4, 64),
}
VAE = ("vae_encoder_first", "vae_encoder_next", "vae_encoder_last", "vae_decoder_first", "vae_decoder_next")
NETWORKS = [(form, component) for form in FORMS for component in VAE] + [(TEXT, "text_encoder")]
OFTEN = ("sm_120", "bf16")
"""What TensorRT-RTX builds for in every full run; the rest of the grid when it is asked for."""
# Latent frames, height, width, tokens; none of them traced, the first as small as they come.
SHAPES: list[Sizes] = [
    {"chunk": frames, "frames": frames, "latent_height": height, "latent_width": width, "tokens": tokens}
    for frames, height, width, tokens in [(1, 2, 3, 1), (2, 7, 4, 77), (5, 5, 8, 300), (6, 8, 5, 512)]
]


@pytest.fixture(scope="module")
def process() -> Iterator[BuildProcess]:
    with BuildProcess() as running:
        yield running


def request_for(
    form: str, component: str, backend: Backend, precision: str = "fp32", *, arch: str | None = None, wide: str = ""
) -> BuildRequest:
    row = networks(form, bool(wide))[component]
    limits = ShapeProfile({name: LIMITS[name] for name in row.ranges})
    spec = EngineSpec(
        NetworkSpec("wan", component, form, "weights", row.inputs, row.outputs, limits), limits, precision
    )
    arguments = {"form": form, "component": component, "precision": precision, "wide": wide}
    return BuildRequest(spec, NetworkSource("tests.helpers.wan", "load_network", arguments), backend, CPU, arch)


def check(request: BuildRequest, process: BuildProcess, folder: Path) -> None:
    """Builds, and compares each output with eager PyTorch's at every shape."""
    form, component = request.source.arguments["form"], request.spec.network.component
    plan = build_engine(request, EngineStore(folder), process).plan
    network = load_network(form, component, "fp32")
    engine = request.backend.load(plan, request.spec, lambda: load_network(form, component, "fp32"), CPU)
    engine.load()
    for sizes in SHAPES:
        own = {name: sizes[name] for name in request.spec.profile.ranges}
        assert own != trace_sizes(request.spec.profile)
        inputs = example_inputs(request.spec, own, seed=7)
        with torch.inference_mode():
            given = network(**inputs)
        expected = given if isinstance(given, tuple) else (given,)
        found = engine(inputs)
        for name, one in zip([tensor.name for tensor in request.spec.network.outputs], expected, strict=True):
            assert found[name].shape == one.shape
            off = float((found[name] - one).abs().max())
            assert off <= GATE * max(1.0, float(one.abs().max())), f"{name} at {own}"
    engine.unload()


@pytest.mark.slow
@pytest.mark.parametrize(("form", "component"), NETWORKS)
def test_onnxruntime_gives_eager_pytorchs_result(
    form: str, component: str, process: BuildProcess, tmp_path: Path
) -> None:
    check(request_for(form, component, OnnxRuntimeBackend()), process, tmp_path)


@pytest.mark.torture
@pytest.mark.parametrize(("form", "component"), NETWORKS)
def test_aotinductor_gives_eager_pytorchs_result(
    form: str, component: str, process: BuildProcess, tmp_path: Path
) -> None:
    check(request_for(form, component, InductorBackend()), process, tmp_path)


TARGETS = [
    pytest.param(arch, precision, marks=[pytest.mark.slow if (arch, precision) == OFTEN else pytest.mark.torture])
    for arch in ("sm_86", "sm_89", "sm_120")
    for precision in ("fp16", "bf16")
]


@pytest.mark.parametrize(("arch", "precision"), TARGETS)
@pytest.mark.parametrize(("form", "component"), NETWORKS)
def test_tensorrt_rtx_builds_for_a_gpu_that_is_not_here(
    form: str, component: str, arch: str, precision: str, process: BuildProcess, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    request = request_for(form, component, TensorRTBackend(), precision, arch=arch, wide="wide")
    manifest = build_engine(request, EngineStore(tmp_path), process).plan.manifest
    assert set(manifest.files) == {PLAN}
    assert manifest.target.arch == arch and manifest.size_bytes > 100_000

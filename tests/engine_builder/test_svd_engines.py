"""Stable Video Diffusion's networks through the same backends: other axes, other constants, the same gates."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.engine_builder.backends.base import Runner
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from i2v_tensorrt.engine_builder.backends.tensorrt import PLAN, TensorRTBackend
from i2v_tensorrt.engine_builder.build import build_engine
from i2v_tensorrt.engine_builder.compile import BuildRequest
from i2v_tensorrt.engine_builder.export import example_inputs, trace_sizes
from i2v_tensorrt.engine_builder.spec import EngineSpec, ShapeProfile
from i2v_tensorrt.engine_builder.store import EngineStore
from i2v_tensorrt.engine_builder.worker import BuildProcess
from i2v_tensorrt.jobs.engines import EngineSet, clip_sizes
from i2v_tensorrt.jobs.policy import EnginePolicy
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.tiny_svd import TinySvdSizes, write_tiny_svd

from .toys import CPU, InProcess

GATE = 1e-5
Sizes = Mapping[str, int]
Pair = Callable[[str], tuple[Runner, Runner]]
"""Eager PyTorch and the engine of a component in fp32 for every size, both loaded."""


@pytest.fixture(scope="module")
def model(tiny_svd_folder: Path) -> VideoModel:
    return open_model(tiny_svd_folder)


@pytest.fixture(scope="module")
def pair(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    store = EngineStore(tmp_path_factory.mktemp("engines"))

    @cache
    def load(component: str) -> tuple[Runner, Runner]:
        network = model.components[component].spec
        # Tuned for small sizes, where the gate is quick.
        ranges = {name: replace(limit, opt=limit.above(4)) for name, limit in network.limits.ranges.items()}
        spec = EngineSpec(network, ShapeProfile(ranges), "fp32")
        request = BuildRequest(spec, model.source(component, "fp32"), OnnxRuntimeBackend(), CPU)
        plan = build_engine(request, store, InProcess()).plan
        runners = EagerRunner(spec, lambda: model.load(component, "fp32"), CPU), OnnxRuntimeRunner(plan, spec, CPU)
        for each in runners:
            each.load()
        return runners

    return load


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
slow_if_core = [pytest.param(name, marks=[pytest.mark.slow] if name == "core" else []) for name in SHAPES]


@pytest.mark.parametrize("component", slow_if_core)
def test_onnxruntime_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(pair: Pair, component: str) -> None:
    eager, engine = pair(component)
    for sizes in SHAPES[component]:
        assert sizes != trace_sizes(engine.spec.profile)
        inputs = example_inputs(engine.spec, dict(sizes), seed=7)
        (expected,), (found,) = eager(inputs).values(), engine(inputs).values()
        assert float((expected - found).abs().max()) <= GATE * max(1.0, float(expected.abs().max())), sizes


@pytest.mark.slow
def test_every_input_of_the_cores_engine_moves_its_output_in_its_branch_alone(pair: Pair) -> None:
    _, engine = pair("core")
    inputs, others = (example_inputs(engine.spec, dict(clip(2, 3, 8, 12)), seed) for seed in (0, 1))
    before = engine(inputs)["prediction"]
    for name in inputs:
        for branch in (0, 1):
            changed = inputs[name].clone()
            shared = len(changed) == 1
            changed[0 if shared else branch] = others[name][0 if shared else branch]
            moved = (engine({**inputs, name: changed})["prediction"] - before).abs().amax(dim=(1, 2, 3, 4))
            assert moved[branch] > 1e-3, f"{name} is not connected"
            assert shared or moved[1 - branch] == 0, f"{name} reaches the other branch"


@pytest.mark.torture
@pytest.mark.parametrize("shapes", ["exact", "range"])
@pytest.mark.parametrize("component", ["core", "vae_decoder"])
def test_aotinductor_gives_eager_pytorchs_result(
    model: VideoModel, tmp_path: Path, component: str, shapes: str
) -> None:
    engines = EngineSet(model, EngineStore(tmp_path), EnginePolicy(backend="inductor", shapes=shapes), CPU)
    small = {**clip(2, 4, 8, 16), **chunk(4, 8, 16)}
    with BuildProcess() as process:
        spec = engines.build(component, small, process).plan.manifest.spec
    network = model.load(component, "fp32")
    for sizes in [small, *(SHAPES[component] if shapes == "range" else ())]:
        own = {name: size for name, size in sizes.items() if name in spec.network.limits.ranges}
        inputs = example_inputs(spec, own, seed=5)
        with torch.inference_mode():
            expected = network(**inputs)
        (found,) = engines.run(component, inputs).values()
        assert engines.describe(component) == "inductor, fp32 on cpu"
        assert float((expected - found).abs().max()) <= GATE * max(1.0, float(expected.abs().max())), sizes


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

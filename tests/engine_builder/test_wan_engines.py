"""Wan's transformers through the same backends: tokens, rotary positions and a timestep for each frame."""

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
from i2v_tensorrt.pipeline.models.tiny_wan import TinyWanSizes, write_tiny_wan

from .toys import CPU, InProcess

GATE = 1e-5
Sizes = Mapping[str, int]
Pair = Callable[[str, str], tuple[Runner, Runner]]
"""Eager PyTorch and the engine of a kind's component in fp32 for every size, both loaded."""
CORES = [("wan21", "core"), ("a14b", "core_late"), ("ti2v", "core")]


def clip(batch: int, frames: int, height: int, width: int) -> Sizes:
    return {"batch": batch, "frames": frames, "latent_height": height, "latent_width": width}


SHAPES = [clip(1, 1, 4, 4), clip(2, 1, 8, 12), clip(2, 21, 4, 6), clip(1, 3, 16, 24), clip(2, 6, 10, 4)]


@pytest.fixture(scope="module")
def pair(tiny_wan: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    store = EngineStore(tmp_path_factory.mktemp("engines"))

    @cache
    def load(kind: str, component: str) -> tuple[Runner, Runner]:
        model = open_model(tiny_wan(kind))
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


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "component"), CORES)
def test_onnxruntime_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(
    pair: Pair, kind: str, component: str
) -> None:
    eager, engine = pair(kind, component)
    for sizes in SHAPES:
        assert sizes != trace_sizes(engine.spec.profile)
        inputs = example_inputs(engine.spec, dict(sizes), seed=7)
        (expected,), (found,) = eager(inputs).values(), engine(inputs).values()
        assert float((expected - found).abs().max()) <= GATE * max(1.0, float(expected.abs().max())), sizes


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "component"), CORES)
def test_every_input_of_the_cores_engine_moves_its_output_in_its_branch_alone(
    pair: Pair, kind: str, component: str
) -> None:
    _, engine = pair(kind, component)
    inputs, others = (example_inputs(engine.spec, dict(clip(2, 3, 8, 12)), seed) for seed in (0, 1))
    before = engine(inputs)["prediction"]
    for name in inputs:
        for branch in (0, 1):
            changed = inputs[name].clone()
            changed[branch] = others[name][branch]
            moved = (engine({**inputs, name: changed})["prediction"] - before).abs().amax(dim=(1, 2, 3, 4))
            assert moved[branch] > 1e-3, f"{name} is not connected"
            assert moved[1 - branch] == 0, f"{name} reaches the other branch"


@pytest.mark.torture
@pytest.mark.parametrize("shapes", ["exact", "range"])
@pytest.mark.parametrize(("kind", "component"), CORES)
def test_aotinductor_gives_eager_pytorchs_result(
    tiny_wan: Callable[[str], Path], tmp_path: Path, kind: str, component: str, shapes: str
) -> None:
    model = open_model(tiny_wan(kind))
    engines = EngineSet(model, EngineStore(tmp_path), EnginePolicy(backend="inductor", shapes=shapes), CPU)
    small = clip(2, 4, 8, 16)
    with BuildProcess() as process:
        spec = engines.build(component, small, process).plan.manifest.spec
    network = model.load(component, "fp32")
    for sizes in [small, *(SHAPES if shapes == "range" else ())]:
        inputs = example_inputs(spec, dict(sizes), seed=5)
        with torch.inference_mode():
            expected = network(**inputs)
        (found,) = engines.run(component, inputs).values()
        assert engines.describe(component) == "inductor, fp32 on cpu"
        assert float((expected - found).abs().max()) <= GATE * max(1.0, float(expected.abs().max())), sizes


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
@pytest.mark.parametrize(("kind", "component"), [*CORES, ("wan21", "image_encoder")])
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

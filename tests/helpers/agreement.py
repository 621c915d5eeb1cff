"""What the engines of every family are asked: that they give eager PyTorch's result, and listen to every input."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.base import INSIDE, Runner
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs, trace_sizes
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from .toys import CPU, InProcess

GATE = 1e-5
"""The greatest difference, as a part of the greatest output (or of 1, if that is more)."""
Sizes = Mapping[str, int]
Pair = tuple[Runner, Runner]
"""Eager PyTorch and the engine, both loaded."""


def onnxruntime_pair(model: VideoModel, component: str, store: EngineStore, place: str = INSIDE) -> Pair:
    """Both runners of a component in fp32, for every size; the engine's weights are in that place."""
    network = OnnxRuntimeBackend.network_of(model.components[component].spec, place)
    # Tuned for small sizes, where the parity check is quick.
    ranges = {name: replace(limit, opt=limit.above(4)) for name, limit in network.limits.ranges.items()}
    spec = EngineSpec(network, ShapeProfile(ranges), "fp32")
    request = BuildRequest(spec, model.source(component, "fp32"), OnnxRuntimeBackend(), CPU)
    plan = build_engine(request, store, InProcess()).plan
    load = partial(model.load, component, "fp32")
    runners = EagerRunner(spec, load, CPU), OnnxRuntimeRunner(plan, spec, load, CPU)
    for each in runners:
        each.load()
    return runners


def assert_equal(expected: torch.Tensor, found: torch.Tensor, sizes: Sizes) -> None:
    """Within the parity check."""
    assert float((expected - found).abs().max()) <= GATE * max(1.0, float(expected.abs().max())), sizes


def assert_untraced_sizes_agree(pair: Pair, shapes: Iterable[Sizes]) -> None:
    """Both runners give the same at sizes that the export has not seen."""
    eager, engine = pair
    for sizes in shapes:
        assert sizes != trace_sizes(engine.spec.profile)
        inputs = example_inputs(engine.spec, dict(sizes), seed=7)
        (expected,), (found,) = eager(inputs).values(), engine(inputs).values()
        assert_equal(expected, found, sizes)


def assert_inputs_move_their_branch_alone(engine: Runner, sizes: Sizes) -> None:
    """Every input of a core is connected, and a branch of it to no other branch; what has one item is shared."""
    inputs, others = (example_inputs(engine.spec, dict(sizes), seed) for seed in (0, 1))
    before = engine(inputs)["prediction"]
    for name in inputs:
        for branch in (0, 1):
            changed = inputs[name].clone()
            shared = len(changed) == 1
            changed[0 if shared else branch] = others[name][0 if shared else branch]
            moved = (engine({**inputs, name: changed})["prediction"] - before).abs().amax(dim=(1, 2, 3, 4))
            assert moved[branch] > 1e-3, f"{name} is not connected"
            assert shared or moved[1 - branch] == 0, f"{name} reaches the other branch"


def assert_aotinductor_agrees(
    model: VideoModel, component: str, shapes: str, small: Sizes, others: Iterable[Sizes], folder: Path
) -> None:
    """An engine built by a shape policy for the sizes `small` gives eager's result there, and a range at others."""
    engines = EngineSet(model, EngineStore(folder), EnginePolicy(backend="inductor", shapes=shapes), CPU)
    with BuildProcess() as process:
        spec = engines.build(component, small, process).plan.manifest.spec
    network = model.load(component, "fp32")
    for sizes in [small, *(others if shapes == "range" else ())]:
        own = {name: size for name, size in sizes.items() if name in spec.network.limits.ranges}
        inputs = example_inputs(spec, own, seed=5)
        with torch.inference_mode():
            expected = network(**inputs)
        (found,) = engines.run(component, inputs).values()
        assert engines.describe(component) == "inductor, fp32 on cpu"
        assert_equal(expected, found, sizes)

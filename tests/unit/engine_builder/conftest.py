"""Engines of the tiny checkpoint, built once for all tests of this folder."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest

from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.compile import BuildRequest
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import open_model

from ...helpers.toys import CPU, FILES, InProcess, publish, toy_spec

Built = Callable[[str, str], Plan]
"""The ONNX Runtime engine of a component of the tiny checkpoint: fp32 for every size, other precisions for one."""


@pytest.fixture(scope="session")
def model(tiny_folder: Path) -> VideoModel:
    return open_model(tiny_folder)


@pytest.fixture(scope="session")
def built(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> Built:
    store = EngineStore(tmp_path_factory.mktemp("engines"))

    @cache
    def build(component: str, precision: str) -> Plan:
        network = model.components[component].spec
        # Tuned for small sizes, where the parity check is quick.
        ranges = {name: replace(limit, opt=limit.above(4)) for name, limit in network.limits.ranges.items()}
        profile = ShapeProfile(ranges)
        # Half precision is slow on a CPU, and a graph of fixed sizes is exported in a third of the time.
        spec = EngineSpec(network, profile if precision == "fp32" else profile.exact(profile.optimum), precision)
        request = BuildRequest(spec, model.source(component, precision), OnnxRuntimeBackend(), CPU)
        return build_engine(request, store, InProcess()).plan

    return build


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def plan(store: EngineStore) -> Plan:
    return publish(store, toy_spec(), FILES)

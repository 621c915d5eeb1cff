"""Two experts of one network: an engine without weights serves both, one with weights is each one's own."""

import json
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.models.model_networks import BUILT_BLOCKS
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.runtime.engines.catalog import namesake
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toys import CPU, InProcess

SIZES = {"batch": 1, "frames": 2, "latent_height": 4, "latent_width": 6}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_tiny_wan(tmp_path / "a14b", "a14b", TinyWanSizes(layers=3))


def engines(folder: Path, backend: str) -> EngineSet:
    policy = EnginePolicy(backend=backend, precision="fp32", shapes="exact")
    return EngineSet(open_model(folder), EngineStore(folder.parent / "engines"), policy, CPU)


def test_experts_share_an_engine_that_holds_no_weights(folder: Path) -> None:
    catalog = engines(folder, "inductor").catalog
    early, late = (catalog.request(name, SIZES) for name in ("core", "core_late"))
    assert early.spec == late.spec and early.spec.network.component == "core"
    assert early.source != late.source, "each is compared over its own weights"
    assert early.of_blocks and early.source.arguments["blocks"] == str(BUILT_BLOCKS)
    assert early.source.size_bytes < open_model(folder).size_bytes("core", "fp32")


def test_experts_with_weights_inside_have_an_engine_each(folder: Path) -> None:
    catalog = engines(folder, "onnxruntime").catalog
    early, late = (catalog.request(name, SIZES) for name in ("core", "core_late"))
    assert (early.spec.network.component, late.spec.network.component) == ("core", "core_late")
    assert not early.of_blocks and early.source.size_bytes == open_model(folder).size_bytes("core", "fp32")


def test_an_expert_of_another_build_is_another_network(folder: Path) -> None:
    config = folder / "transformer_2" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text("utf-8")), "eps": 1e-5}), "utf-8")
    assert namesake(open_model(folder), "core_late") == "core_late"


def test_one_build_serves_both_under_their_own_names(folder: Path) -> None:
    found = engines(folder, "inductor")
    request = found.catalog.request("core", SIZES)
    build_engine(request, found.store, InProcess())
    assert found.catalog.fitting("core_late", SIZES) is not None
    runner, model = found.runner("core_late", SIZES), found.model
    assert (runner.backend, runner.spec.network.component) == ("inductor", "core_late")
    inputs = {
        spec.name: torch.randn(spec.shape_at(SIZES), generator=torch.Generator().manual_seed(0))
        for spec in model.components["core_late"].spec.inputs
    }
    wanted, other = (model.load(name, "fp32")(**inputs) for name in ("core_late", "core"))
    assert (runner(inputs)["prediction"] - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert (other - wanted).abs().max() > 1e-2 * wanted.abs().max(), "a control"
    assert found.take_notes() == []

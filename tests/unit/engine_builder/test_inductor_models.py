"""The video model's networks through Inductor, with their rewrites, against eager PyTorch without."""

from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import InputError
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.i2vgen_xl import write_tiny_checkpoint
from i2v_tensorrt.pipeline.models.base import VideoModel
from i2v_tensorrt.pipeline.models.registry import load_network, open_model
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy

from ...helpers.toys import CPU


@pytest.mark.parametrize("component", ["text_encoder", "image_encoder", "vae_encoder", "conditioner"])
def test_a_component_without_rewrites_refuses_them(model: VideoModel, component: str) -> None:
    assert model.rewrites(component, "inductor") == ()
    with pytest.raises(InputError, match=f"^The rewrites of {component} are none, found fused_qkv.$"):
        model.load(component, "fp32", ("fused_qkv",))


@pytest.mark.parametrize("component", ["core", "vae_decoder"])
def test_rewrites_are_known_by_component(model: VideoModel, component: str) -> None:
    names = model.known_rewrites[component]
    assert names[0] == "channels_last"
    assert set(model.rewrites(component, "inductor")) <= set(names)
    assert model.rewrites(component, "tensorrt") == ()
    with pytest.raises(InputError, match=f"^The rewrites of {component} are channels_last, .*, found faster.$"):
        model.load(component, "fp32", ("channels_last", "faster"))
    assert type(model.load(component, "fp32", names)) is not type(model.load(component, "fp32"))


def test_the_plain_and_the_rewritten_network_share_their_weights(tiny_folder: Path) -> None:
    plain = load_network(str(tiny_folder), "core", "fp32")
    rewritten = load_network(str(tiny_folder), "core", "fp32", "channels_last,fused_qkv")
    pairs = zip(plain.parameters(), rewritten.parameters(), strict=True)
    assert all(one is other for one, other in pairs)


def engine_set(model: VideoModel, root: Path, shapes: str, rewrites: tuple[str, ...] | None = None) -> EngineSet:
    policy = EnginePolicy(backend="inductor", shapes=shapes, rewrites=rewrites)
    return EngineSet(model, EngineStore(root), policy, CPU)


CLIP = {"batch": 2, "frames": 3, "latent_height": 8, "latent_width": 16, "chunk": 3}


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store for the engines of the tiny checkpoint."""
    return tmp_path_factory.mktemp("engines")


# Each compiles a whole network, for half a minute to several.
WHOLE = [
    pytest.param("image_encoder", "exact", marks=pytest.mark.slow),
    *(
        pytest.param(component, shapes, marks=pytest.mark.torture)
        for component in ("text_encoder", "vae_encoder", "core", "vae_decoder")
        for shapes in ("exact", "range")
    ),
]


@pytest.mark.parametrize(("component", "shapes"), WHOLE)
def test_whole_components_give_eager_pytorchs_result(
    model: VideoModel, engines: Path, component: str, shapes: str
) -> None:
    rewrites = model.known_rewrites.get(component, ())
    found = engine_set(model, engines, shapes, rewrites)
    with BuildProcess() as process:
        result = found.build(component, CLIP, process, force=True)
    manifest = result.plan.manifest
    assert manifest.spec.network.weights_sha256 == ""
    assert manifest.details["gated_with"] == model.components[component].spec.weights_sha256
    assert set(manifest.spec.rewrites) == set(rewrites)
    larger = {**CLIP, "latent_height": 16, "latent_width": 8, "frames": 4, "chunk": 2, "batch": 1}
    network = model.load(component, "fp32")
    for sizes in [CLIP, *([larger] if shapes == "range" else [])]:
        own = {name: size for name, size in sizes.items() if name in manifest.spec.network.limits.ranges}
        inputs = example_inputs(manifest.spec, own, seed=5)
        with torch.inference_mode():
            expected = network(**inputs)
        (outputs,) = found.run(component, inputs).values()
        assert found.describe(component) == "inductor, fp32 on cpu"
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(outputs, expected, rtol=0, atol=1e-5 * scale)


@pytest.mark.torture
def test_a_fine_tune_is_served_by_the_same_engine(model: VideoModel, tmp_path: Path) -> None:
    other = open_model(write_tiny_checkpoint(tmp_path / "other", seed=1))
    first, second = (engine_set(each, tmp_path / "engines", "exact") for each in (model, other))
    with BuildProcess() as process:
        first.build("vae_encoder", CLIP, process)
    assert [plan.manifest.key for plan in second.catalog.stored("vae_encoder")] == [
        plan.manifest.key for plan in first.catalog.stored("vae_encoder")
    ]
    spec = EngineSpec(other.components["vae_encoder"].spec, ShapeProfile(), "fp32")
    inputs = example_inputs(spec, {"latent_height": 8, "latent_width": 16})
    results = [each.run("vae_encoder", inputs)["latents"] for each in (first, second)]
    assert second.take_notes() == []
    with torch.inference_mode():
        expected = [each.load("vae_encoder", "fp32")(**inputs) for each in (model, other)]
    for found, wanted in zip(results, expected, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)
    assert float((expected[0] - expected[1]).abs().max()) > 1e-2

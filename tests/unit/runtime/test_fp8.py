"""A denoiser whose engine rounds its products as it multiplies: it is asked for by precision, and takes no pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from i2v_tensorrt.common.errors import EngineError, MissingEngineError
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.compile import check_plan
from i2v_tensorrt.engine_builder.build.parity import measure
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.graph.recorded_calls import PARITY_CALLS, RECORDED
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.pipeline.dummies.wan import TinyWanSizes, write_tiny_wan
from i2v_tensorrt.pipeline.fused.kernels import flash_attention
from i2v_tensorrt.pipeline.models.model_networks import streamed_bytes
from i2v_tensorrt.pipeline.models.registry import open_model
from i2v_tensorrt.pipeline.models.wan.networks import FP8_ATTENTION, FP8_PRODUCTS
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime import prebuild as prebuilding
from i2v_tensorrt.runtime.calibration import CalibrationData
from i2v_tensorrt.runtime.clip_sizes import clip_sizes
from i2v_tensorrt.runtime.engines import catalog, messages
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.policy import EnginePolicy
from i2v_tensorrt.runtime.prebuild import Prebuild, prebuild

from ...helpers.stages import quiet
from ...helpers.toys import CPU, InProcess

SIZES = {"batch": 1, "frames": 2, "latent_height": 4, "latent_width": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_wan(tmp_path_factory.mktemp("fp8") / "wan", sizes=TinyWanSizes(layers=3))


def engines(folder: Path, backend: str = "inductor", precision: str = "fp8") -> EngineSet:
    policy = EnginePolicy(backend=backend, precision=precision, shapes="exact")
    return EngineSet(open_model(folder), EngineStore(folder.parent / "engines"), policy, CPU)


def test_an_engine_rounds_and_says_so(folder: Path) -> None:
    found = engines(folder)
    request = found.catalog.request("core", SIZES)
    assert (request.spec.precision, request.spec.products) == ("bf16", "fp8")
    assert FP8_PRODUCTS in request.spec.rewrites and not request.spec.calibration
    plan = build_engine(request, found.store, InProcess()).plan
    assert messages.precision(plan.manifest).startswith("bf16 with products in fp8")
    assert plan.manifest.verdict is not None and plan.manifest.verdict.snr_db < 60, "a control: it did round"

    runner, model = found.runner("core", SIZES), found.model
    assert runner.backend == "inductor"
    inputs = example_inputs(runner.spec, SIZES)
    result = runner(inputs)["prediction"]
    same = model.load("core", "bf16", runner.spec.rewrites)(**inputs)
    plain = model.load("core", "bf16")(**inputs)
    assert measure(same, result, SIZES).snr_db > 35, "nothing but bf16's own rounding"
    assert 20 < measure(plain, result, SIZES).snr_db < 60


def test_with_pictures_it_is_compared_in_clips_of_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On random inputs it may look right, or wrong, where in a clip it is not."""
    monkeypatch.setattr(prebuilding, "BuildProcess", InProcess)
    found, size = engines(folder), ClipSize(64, 64, 5)
    job = Prebuild(("core",), *size, force=True)
    lines, verdicts = [], []
    for pictures in (None, CalibrationData((Image.new("RGB", (80, 64), "red"),))):
        lines += prebuild(found, replace(job, calibration_data=pictures), quiet)
        (plan,) = [each for each in found.store.plans() if each.manifest.spec.profile.fits({"latent_height": 8})]
        assert (RECORDED in plan.manifest.files) == (pictures is not None)
        verdicts.append(plan.manifest.verdict)
    assert [line.endswith("in recorded clips") for line in lines] == [False, True]
    noise, clips = verdicts
    assert noise and clips and noise.snr_db != clips.snr_db and clips.timesteps == PARITY_CALLS
    request, backend = found.catalog.request("core", clip_sizes(found.model, *size)), found.catalog.backend()
    assert request.reference is not None
    rounded, plain = request.source.load, request.reference.load
    assert check_plan(plan, backend, rounded, CPU, plain) == clips

    def other() -> torch.nn.Module:
        network = plain()
        for parameter in network.parameters():
            parameter.data.neg_()
        return network

    with pytest.raises(EngineError, match="does not give the reference's result"):
        check_plan(plan, backend, rounded, CPU, other)


def test_another_precision_has_an_engine_of_its_own(folder: Path) -> None:
    plain, rounded = (engines(folder, precision=name).catalog.request("core", SIZES).spec for name in ("bf16", "fp8"))
    assert plain.products == "bf16" and plain != rounded


def test_it_is_the_denoisers_alone(folder: Path) -> None:
    found = engines(folder).catalog
    assert found.roundings("core") and not found.roundings("text_encoder")
    assert found.request("vae_decoder_next", {"batch": 1, **SIZES, "chunk": 1}).spec.products != "fp8"


def test_other_backends_take_pictures(folder: Path) -> None:
    found = engines(folder, "onnxruntime").catalog
    assert not found.roundings("core")
    with pytest.raises(MissingEngineError, match="scales are taken from pictures"):
        found.request("core", SIZES)


def test_a_gpu_without_such_products_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "cuda_arch", lambda _: "sm_86")
    with pytest.raises(EngineError, match="fp8 needs a GPU of sm_89 or newer, found sm_86"):
        engines(folder).catalog.request("core", SIZES)


def test_without_a_wish_it_is_bf16_where_that_is_faster(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(EnginePolicy, "precision_on", lambda self, _: "fp16")  # as on a GPU
    for there in (True, False):
        monkeypatch.setattr(flash_attention, "is_there", lambda there=there: there)
        wished, automatic = (engines(folder, precision=name).catalog for name in ("fp16", "auto"))
        assert automatic.precision_of("core") == ("bf16" if there else "fp16")
        assert wished.precision_of("core") == automatic.precision_of("text_encoder") == "fp16"


def test_weights_take_half_the_room(folder: Path) -> None:
    model = open_model(folder)
    rewrites = (FP8_PRODUCTS, FP8_ATTENTION)
    network = model.load("core", "bf16", rewrites)
    held = sum(tensor.nbytes for name, tensor in network.named_parameters() if "blocks." in name)
    whole = sum(tensor.nbytes for name, tensor in model.load("core", "bf16").named_parameters() if "blocks." in name)
    assert held < 0.65 * whole, "tiny layers have much beside their products"
    assert model.size_bytes("core", "bf16", rewrites) < model.size_bytes("core", "bf16")
    assert streamed_bytes(model, "core", "bf16", rewrites) < streamed_bytes(model, "core", "bf16")


def test_the_checkpoints_own_weights_stay_as_they_are(folder: Path) -> None:
    model = open_model(folder)
    plain = model.load("core", "bf16")
    before = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    model.load("core", "bf16", (FP8_PRODUCTS,))
    assert all(torch.equal(tensor, before[name]) for name, tensor in plain.state_dict().items())
    assert all(tensor.dtype != torch.float8_e4m3fn for tensor in plain.state_dict().values())

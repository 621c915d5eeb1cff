"""INT8 and FP8: scales from recorded inputs, real plans of TensorRT-RTX, and refusals in a sentence."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from i2v_tensorrt.common.errors import BackendUnavailableError, EngineError, InputError
from i2v_tensorrt.common.spec import EngineSpec, spec_from_dict
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.backend import OPSET, TensorRTBackend
from i2v_tensorrt.engine_builder.backends.tensorrt.library import PLAN
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.compile import BuildRequest, check_plan, request_to_dict
from i2v_tensorrt.engine_builder.build.parity import check_recorded_parity, measure, passes
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs, export_onnx
from i2v_tensorrt.engine_builder.graph.quantize import check_quantizable, left_out, quantize
from i2v_tensorrt.engine_builder.graph.recorded_calls import (
    PARITY_CALLS,
    RECORDED,
    Calibration,
    Call,
    save_calls,
    save_parity_calls,
)
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import (
    CPU,
    LIMITS,
    TARGET,
    InProcess,
    let_onnxruntime_be_calibrated,
    raising,
    toy_network,
    toy_request,
    toy_spec,
)

SIZES = {"batch": 2, "frames": 2, "latent_height": 8, "latent_width": 8}
WIDTH = 64
CALLS = 6
LOSSY = ("int8", "fp8")


class Mixer(torch.nn.Module):
    """A convolution over places and two layers over channels, wide enough for kernels of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = torch.nn.Conv2d(4, WIDTH, 3, padding=1)
        self.up, self.down = torch.nn.Linear(WIDTH, 2 * WIDTH), torch.nn.Linear(2 * WIDTH, 4)
        self.requires_grad_(False)

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        batch, _, frames, height, width = sample.shape
        x = self.before(sample.permute(0, 2, 1, 3, 4).flatten(0, 1)).permute(0, 2, 3, 1)
        x = self.down(torch.nn.functional.gelu(self.up(x))).reshape(batch, frames, height, width, 4)
        return x.permute(0, 4, 1, 2, 3) * strength[:, :, None, None, None]


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> Calibration:
    network, given = Mixer().eval(), [example_inputs(toy_spec(), SIZES, seed) for seed in range(CALLS)]
    calls = [Call(inputs, {"prediction": network(**inputs)}) for inputs in given]
    path = tmp_path_factory.mktemp("calibration") / "core.safetensors"
    save_calls(calls, path)
    return Calibration(path, "these")


def lossy(precision: str, calibration: Calibration) -> EngineSpec:
    return EngineSpec(toy_network(), LIMITS.exact(SIZES), precision, calibration=calibration.name)


def request(precision: str, calibration: Calibration, arch: str) -> BuildRequest:
    return toy_request(TensorRTBackend(), Mixer, lossy(precision, calibration), arch=arch, calibration=calibration)


def needs_modelopt() -> None:
    pytest.importorskip("modelopt.onnx.quantization", reason="NVIDIA's ModelOpt is not installed")


# With ModelOpt.


@pytest.mark.parametrize("arch", ["sm_89", "sm_120"])
@pytest.mark.parametrize("precision", LOSSY)
def test_tensorrt_builds_a_plan(store: EngineStore, calibration: Calibration, precision: str, arch: str) -> None:
    needs_modelopt()
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx has no build for this platform")
    plan = build_engine(request(precision, calibration, arch), store, InProcess()).plan
    assert set(plan.manifest.files) == {PLAN, RECORDED}
    assert plan.manifest.verdict is None
    assert plan.manifest.spec.calibration == "these"
    assert [found.manifest for found in store.plans()] == [plan.manifest]


@pytest.mark.parametrize("precision", LOSSY)
def test_the_quantized_graph_gives_the_reference_within_the_gate(
    tmp_path: Path, calibration: Calibration, precision: str
) -> None:
    """In ONNX Runtime, and worse than fp16 would be: it is quantized indeed."""
    needs_modelopt()
    import onnxruntime

    spec, network = lossy(precision, calibration), Mixer().eval()
    path = quantize(export_onnx(network, spec, tmp_path, OPSET), spec, calibration, OPSET)
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("DequantizeLinear") >= 2  # what goes into a layer, and its weights
    options = onnxruntime.SessionOptions()
    # ONNX Runtime 1.32 fuses a product and a sum between the pairs, and then refuses its own graph.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = example_inputs(spec, SIZES, 99)
    found = session.run(None, {name: x.numpy() for name, x in inputs.items()})[0]
    verdict = measure(network(**inputs), torch.from_numpy(found), SIZES)
    passes(verdict, precision)
    assert verdict.snr_db < 45


def test_a_calibration_of_other_sizes_is_refused(tmp_path: Path, calibration: Calibration) -> None:
    needs_modelopt()
    spec = replace(lossy("int8", calibration), profile=LIMITS.exact({**SIZES, "frames": 3}))
    graph = export_onnx(Mixer().eval(), spec, tmp_path, OPSET)
    with pytest.raises(InputError, match="calibration does not fit core: frames is 2"):
        quantize(graph, spec, calibration, OPSET)


# Without.


def test_a_missing_modelopt_names_the_line_to_install_and_a_gpu_without_such_products_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("modelopt", "modelopt.onnx", "modelopt.onnx.quantization"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailableError, match="ModelOpt.*pip install"):
        check_quantizable("int8", "sm_89")
    for precision, arch in (("fp8", "sm_86"), ("fp8", "sm_75"), ("int8", "sm_70")):
        with pytest.raises(EngineError, match=f"{precision} needs a GPU of sm_(75|89) or newer, found {arch}"):
            check_quantizable(precision, arch)


def test_another_backend_is_refused(store: EngineStore, calibration: Calibration) -> None:
    build = replace(request("int8", calibration, "sm_89"), backend=OnnxRuntimeBackend(), arch=None)
    with pytest.raises(EngineError, match="int8 and fp8 are for TensorRT, found the backend onnxruntime"):
        build_engine(build, store, InProcess())


def test_another_calibration_is_another_engine(calibration: Calibration) -> None:
    other = replace(calibration, name="those")
    specs = [lossy("int8", calibration), lossy("fp8", calibration), lossy("int8", other)]
    assert len({engine_key(spec, TARGET) for spec in specs}) == 3


def test_products_without_weights_and_the_ends_stay_as_they_are(tmp_path: Path) -> None:
    def node(kind: str, name: str, *inputs: str) -> onnx.NodeProto:
        return onnx.helper.make_node(kind, list(inputs), [name], name=name)

    nodes = [
        node("Conv", "first", "x", "weight"),
        node("Transpose", "turned", "weight"),
        node("MatMul", "layer", "first", "turned"),
        node("MatMul", "scores", "layer", "first"),
        node("Conv", "middle", "scores", "weight"),
        node("MatMul", "mixed", "scores", "middle"),
        node("Conv", "last", "mixed", "weight"),
    ]
    weight = onnx.helper.make_tensor("weight", onnx.TensorProto.FLOAT, [1, 1, 1, 1], [1.0])
    x, last = (onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "last"))
    graph = onnx.helper.make_graph(nodes, "network", [x], [last], [weight])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "network.onnx")
    assert left_out(tmp_path / "network.onnx") == ["scores", "mixed", "first", "last"]


def test_a_request_reaches_the_child_whole(calibration: Calibration, tmp_path: Path) -> None:
    data = request_to_dict(request("int8", calibration, "sm_89"), tmp_path)
    assert data["calibration"] == str(calibration.path)
    assert spec_from_dict(data["spec"]).calibration == "these"


def test_recorded_calls_come_back_and_a_few_are_kept_for_the_gate(calibration: Calibration, tmp_path: Path) -> None:
    calls = calibration.calls()
    assert len(calls) == CALLS
    wanted = example_inputs(toy_spec(), SIZES, 3)
    assert set(calls[3].inputs) == set(wanted)
    assert all(torch.equal(calls[3].inputs[name], wanted[name]) for name in wanted)
    assert torch.equal(calls[3].outputs["prediction"], Mixer().eval()(**wanted))
    save_parity_calls(calibration, tmp_path)
    kept = Calibration(tmp_path / RECORDED).calls()
    assert len(kept) == PARITY_CALLS < len(calls)
    given = [call.inputs["sample"] for call in calls]
    assert torch.equal(kept[0].inputs["sample"], given[0])
    assert all(any(torch.equal(each.inputs["sample"], one) for one in given) for each in kept)


@pytest.mark.parametrize("content", [b"", b"not a tensor", None])
def test_what_is_no_calibration_is_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "foreign.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match="is no calibration"):
        Calibration(path).calls()


def test_the_gate_repeats_recorded_calls(calibration: Calibration) -> None:
    """An engine that is right on them alone passes, one that is wrong on the last does not."""
    spec, calls = lossy("int8", calibration), calibration.calls()

    class WrongOnTheLast(Mixer):
        def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
            found = super().forward(sample, strength)
            return -found if torch.equal(sample, calls[-1].inputs["sample"]) else found

    for other, fits in ((Mixer().eval(), True), (WrongOnTheLast().eval(), False)):
        candidate = EagerBackend().load(None, spec, lambda other=other: other, CPU)
        verdict = check_recorded_parity(candidate, calls)
        assert verdict.timesteps == CALLS
        assert verdict.shapes == (SIZES,)
        assert (verdict.cosine > 0.99) == fits


def test_an_engine_that_meets_its_gpu_later_is_compared_on_what_was_kept(
    calibration: Calibration, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime stands in for TensorRT, which cannot run here."""
    let_onnxruntime_be_calibrated(monkeypatch)
    build = replace(request("int8", calibration, "sm_89"), backend=OnnxRuntimeBackend(), arch=None)
    plan = build_engine(build, store, InProcess()).plan
    assert plan.manifest.verdict is not None
    assert plan.manifest.verdict.timesteps == PARITY_CALLS
    assert (
        check_plan(plan, OnnxRuntimeBackend(), raising(AssertionError("what it meets was recorded")), CPU)
        == plan.manifest.verdict
    )
    with pytest.raises(EngineError, match="int8 engine does not give the reference's result"):
        check_plan(plan, EagerBackend(), lambda: _Other().eval(), CPU)


class _Other(Mixer):
    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        return super().forward(sample, strength).flip(0)

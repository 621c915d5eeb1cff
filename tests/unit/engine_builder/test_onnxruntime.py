"""ONNX Runtime: the contract of a runner, and the same numbers as eager PyTorch at sizes that were never traced."""

import sys
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from unittest.mock import MagicMock

import onnxruntime
import pytest
import torch

from i2v_tensorrt.common.errors import BackendUnavailableError, EngineError
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.engine_builder.backends import onnxruntime as module
from i2v_tensorrt.engine_builder.backends.base import Runner
from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend, OnnxRuntimeRunner
from i2v_tensorrt.engine_builder.backends.registry import choose_backend
from i2v_tensorrt.engine_builder.build.build import build_engine, quiet
from i2v_tensorrt.engine_builder.build.compile import compile_engine
from i2v_tensorrt.engine_builder.build.parity import measure, passes
from i2v_tensorrt.engine_builder.graph.onnx_export import FILE_NAME, example_inputs, trace_sizes
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan
from i2v_tensorrt.pipeline.models.base import VideoModel

from ...helpers.contract import assert_contract, toy_sizes
from ...helpers.toys import CPU, Computed, InProcess, ToyNetwork, publish, raising, toy_request, toy_spec
from .conftest import Built

Sizes = Mapping[str, int]
Pair = Callable[[str, str], tuple[Runner, Runner]]
"""Eager PyTorch and the engine of a component in a precision, both loaded."""


@pytest.fixture(scope="module")
def toy_plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    store = EngineStore(tmp_path_factory.mktemp("toys"))
    return build_engine(toy_request(OnnxRuntimeBackend()), store, InProcess()).plan


@pytest.fixture
def runner(toy_plan: Plan) -> Runner:
    made = OnnxRuntimeRunner(toy_plan, toy_plan.manifest.spec, ToyNetwork, CPU)
    made.load()
    return made


# The contract.


def test_the_runner_keeps_the_contract(toy_plan: Plan) -> None:
    runner = OnnxRuntimeRunner(toy_plan, toy_plan.manifest.spec, ToyNetwork, CPU)
    assert_contract(runner, ToyNetwork(), "_session", 1e-6)
    assert runner.memory_bytes == sum(entry.size_bytes for entry in toy_plan.manifest.files.values()) > 0


def test_a_warm_up_runs_at_the_sizes_given(runner: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(runner, "_run", lambda inputs: seen.append(runner.spec.network.sizes_of(inputs)) or {})
    runner.warm_up(toy_sizes())
    assert seen == [toy_sizes()]


# What is not right never reaches ONNX Runtime, or comes back as a sentence.


def test_what_onnxruntime_cannot_load_is_an_engine_error(store: EngineStore) -> None:
    plan = publish(store, toy_spec(), {FILE_NAME: b"no graph"})
    with pytest.raises(EngineError, match="^ONNX Runtime cannot load the core engine: "):
        OnnxRuntimeRunner(plan, toy_spec(), ToyNetwork, CPU).load()
    with pytest.raises(EngineError, match="needs a built engine"):
        OnnxRuntimeBackend().load(None, toy_spec(), ToyNetwork, CPU)


ALLOCATION = "Failed to allocate memory for requested buffer of size 5"
FAILED_NODE = "Non-zero status code returned while running Conv node"


@pytest.mark.parametrize(
    ("device", "reason", "kind"),
    [
        ("cuda", ALLOCATION, torch.cuda.OutOfMemoryError),
        ("cuda", "CUDA failure 2: out of memory ; GPU=0", torch.cuda.OutOfMemoryError),
        ("cuda", "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED", torch.cuda.OutOfMemoryError),
        ("cuda", FAILED_NODE, EngineError),
        ("cpu", ALLOCATION, EngineError),
    ],
)
def test_missing_gpu_memory_is_pytorchs_own_error(
    toy_plan: Plan, monkeypatch: pytest.MonkeyPatch, device: str, reason: str, kind: type[Exception]
) -> None:
    monkeypatch.setattr(onnxruntime, "InferenceSession", raising(RuntimeError(reason)))
    with pytest.raises(kind, match=reason[:20]):
        OnnxRuntimeRunner(toy_plan, toy_plan.manifest.spec, ToyNetwork, torch.device(device)).load()


def test_cudas_libraries_that_do_not_start_for_want_of_memory_are_out_of_memory(
    toy_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    reason = "CUBLAS failure 1: CUBLAS_STATUS_NOT_INITIALIZED"
    monkeypatch.setattr(onnxruntime, "InferenceSession", raising(RuntimeError(reason)))
    runner = OnnxRuntimeRunner(toy_plan, toy_plan.manifest.spec, ToyNetwork, torch.device("cuda"))
    for short, kind in ((True, torch.cuda.OutOfMemoryError), (False, EngineError)):
        monkeypatch.setattr(module, "is_short", lambda *_, short=short: short)
        with pytest.raises(kind, match="NOT_INITIALIZED"):
            runner.load()


def test_a_provider_that_does_not_start_is_not_replaced_by_the_cpu(
    toy_plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX Runtime prints a line, and makes a session on the CPU."""
    made = MagicMock(return_value=MagicMock(get_providers=lambda: ["CPUExecutionProvider"]))
    monkeypatch.setattr(onnxruntime, "InferenceSession", made)
    runner = OnnxRuntimeRunner(toy_plan, toy_plan.manifest.spec, ToyNetwork, torch.device("cuda"))
    with pytest.raises(EngineError, match=r"cannot load the core engine: its CUDAExecutionProvider does not start"):
        runner.load()
    assert made.call_args.kwargs["enable_fallback"] is False


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc", MemoryError),
        ("bad allocation", MemoryError),
        (ALLOCATION, MemoryError),
        (FAILED_NODE, EngineError),
    ],
)
def test_missing_memory_in_a_run_on_the_cpu_is_pythons_own_error(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, reason: str, kind: type[Exception]
) -> None:
    """By which decoding knows that fewer frames at once may do."""
    session = MagicMock(run_with_iobinding=raising(RuntimeError(reason)))
    monkeypatch.setattr(runner, "_session", session)
    with pytest.raises(kind, match="ONNX Runtime cannot run the core engine: "):
        runner(example_inputs(toy_spec(), toy_sizes()))


BURNT = {
    # The exporter writes the traced batch into this one's output without a word.
    "batch": lambda sample, strength: (
        sample * strength[:, :, None, None, None] + torch.ones(int(sample.shape[0]), 1, 1, 1, 1)
    ),
    # The exporter keeps the way that the trace took.
    "branch": lambda sample, strength: (-1 if sample.shape[0] == 1 else 1) * sample * strength[:, :, None, None, None],
}


@pytest.mark.parametrize("kind", BURNT)
def test_an_export_that_is_right_for_the_traced_size_alone_is_refused(kind: str, tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="core"):
        compile_engine(toy_request(OnnxRuntimeBackend(), lambda: Computed(BURNT[kind])), tmp_path, quiet)


def test_bf16_is_refused_before_anything_is_exported(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="fp32 and fp16, found bf16"):
        OnnxRuntimeBackend().build(ToyNetwork(), toy_spec(precision="bf16"), tmp_path, quiet)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("package", ["onnxruntime", "onnx", "onnxscript"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = OnnxRuntimeBackend().availability(CPU)
    assert not found.ok
    assert f"needs the package {package}" in found.reason
    assert found.install == "pip install onnxruntime onnx onnxscript"


def test_a_package_that_others_have_broken_is_no_backend_and_stops_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As onnx beside an ml_dtypes that another pack has pinned."""
    (tmp_path / "onnx.py").write_text("raise AttributeError('ml_dtypes has no attribute float4')", "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "onnx")
    assert choose_backend("auto", CPU).name != "onnxruntime"
    with pytest.raises(BackendUnavailableError, match="onnx, which cannot be imported: ml_dtypes has no attribute"):
        choose_backend("onnxruntime", CPU)


def test_a_device_that_is_not_served_is_not_available(monkeypatch: pytest.MonkeyPatch, toy_plan: Plan) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    assert OnnxRuntimeBackend().availability(CPU).ok
    found = OnnxRuntimeBackend().availability(torch.device("cuda", 0))
    assert found.reason == "The installed ONNX Runtime does not serve cuda."
    assert "onnxruntime-gpu" in found.install
    meta = torch.device("meta")
    assert not OnnxRuntimeBackend().availability(meta).ok
    with pytest.raises(BackendUnavailableError, match="cpu and cuda here, found meta"):
        OnnxRuntimeRunner(toy_plan, toy_spec(), ToyNetwork, meta).load()


def test_the_target_names_the_runtime_and_the_machine() -> None:
    target = OnnxRuntimeBackend().target(CPU)
    assert (target.backend, target.backend_version, target.device) == ("onnxruntime", onnxruntime.__version__, "cpu")
    assert target.arch
    assert torch.__version__ in target.exporter


# The real components against eager PyTorch.


def table(names: str, *rows: tuple[int, ...]) -> list[Sizes]:
    return [dict(zip(names.split(), row, strict=True)) for row in rows]


SIDES = "latent_height latent_width"
SHAPES: dict[str, list[Sizes]] = {
    "text_encoder": [{"batch": 1}],
    "vae_encoder": table(SIDES, (8, 8), (8, 16), (16, 8), (11, 13), (12, 20), (24, 9)),
    "vae_decoder": table(f"chunk {SIDES}", (1, 8, 8), (2, 8, 12), (1, 12, 20), (4, 11, 13), (3, 16, 8), (6, 8, 10)),
    "core": table(
        f"batch frames {SIDES}",
        *((1, 1, 8, 8), (2, 1, 8, 12), (1, 3, 12, 8), (2, 3, 8, 16), (2, 24, 8, 8), (1, 24, 16, 12)),
    ),
}
CASES = [
    pytest.param(component, sizes, marks=[pytest.mark.slow] if component == "core" else [], id=f"{component}-{sizes}")
    for component, shapes in SHAPES.items()
    for sizes in shapes
]
FAST = ["text_encoder", "image_encoder", "vae_encoder", pytest.param("core", marks=pytest.mark.slow)]


@pytest.fixture(scope="module")
def pair(model: VideoModel, built: Built) -> Pair:
    @cache
    def load(component: str, precision: str) -> tuple[Runner, Runner]:
        plan = built(component, precision)
        spec = plan.manifest.spec
        load = partial(model.load, component, precision)
        runners = EagerRunner(spec, load, CPU), OnnxRuntimeRunner(plan, spec, load, CPU)
        for each in runners:
            each.load()
        return runners

    return load


@pytest.mark.parametrize(("component", "sizes"), CASES)
def test_an_fp32_engine_gives_eager_pytorchs_result_at_sizes_that_were_not_traced(
    pair: Pair, component: str, sizes: Sizes
) -> None:
    eager, engine = pair(component, "fp32")
    assert sizes != trace_sizes(engine.spec.profile)
    inputs = example_inputs(engine.spec, dict(sizes), seed=7)
    expected, found = eager(inputs), engine(inputs)
    for name in expected:
        greatest = float((expected[name] - found[name]).abs().max())
        assert found[name].dtype == torch.float32
        assert greatest <= 1e-5 * max(1.0, float(expected[name].abs().max()))


def test_the_image_encoder_has_one_size_and_gives_eager_pytorchs_result(pair: Pair) -> None:
    eager, engine = pair("image_encoder", "fp32")
    assert engine.spec.profile == ShapeProfile()
    for seed in range(6):
        inputs = example_inputs(engine.spec, {}, seed)
        assert torch.allclose(engine(inputs)["image_embeds"], eager(inputs)["image_embeds"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("component", FAST)
def test_every_input_of_an_engine_moves_its_output(pair: Pair, component: str) -> None:
    _, engine = pair(component, "fp32")
    sizes = dict(SHAPES.get(component, [{}])[-1])
    inputs, others = (example_inputs(engine.spec, sizes, seed) for seed in (0, 1))
    before = engine(inputs)
    for name in inputs:
        after = engine({**inputs, name: others[name]})
        assert all(float((after[key] - before[key]).abs().max()) > 1e-3 for key in before), f"{name} is not connected"


@pytest.mark.slow
def test_every_item_of_the_cores_inputs_moves_its_output(pair: Pair) -> None:
    """Both branches at both ends of each tensor: the first and the last frame, opposite corners."""
    _, engine = pair("core", "fp32")
    inputs = example_inputs(engine.spec, toy_sizes(2, 3, 8, 12))
    before = engine(inputs)["prediction"]
    for name, tensor in inputs.items():
        for place in {(branch, *[side] * (tensor.ndim - 1)) for branch in (0, 1) for side in (0, -1)}:
            changed = tensor.clone()
            changed[place] += 10
            after = engine({**inputs, name: changed})["prediction"]
            moved = (after - before).abs().amax(dim=(1, 2, 3, 4))
            assert moved[place[0]] > 1e-5, f"{name} at {place} is not connected"
            assert moved[1 - place[0]] == 0, f"{name} at {place} reaches the other branch"


@pytest.mark.slow
@pytest.mark.parametrize("component", ["text_encoder", "image_encoder", "core"])
def test_an_fp16_engine_passes_the_gate_and_stays_close_to_fp32(pair: Pair, built: Built, component: str) -> None:
    verdict = built(component, "fp16").manifest.verdict
    assert verdict is not None
    passes(verdict, "fp16")
    (_, engine), (eager, _) = pair(component, "fp16"), pair(component, "fp32")
    sizes = engine.spec.profile.optimum
    inputs = example_inputs(eager.spec, sizes, seed=3)
    found, expected = (next(iter(runner(inputs).values())) for runner in (engine, eager))
    assert found.dtype == torch.float16
    passes(measure(expected.double().flatten(), found.double().flatten(), sizes), "fp16")

"""What every backend has in common: the runner's contract, eager PyTorch, and the choice by name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import BackendUnavailableError, EngineError, InputError
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec, TensorSpec
from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.backends.base import Availability, BuildTarget
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend, EagerRunner
from i2v_tensorrt.engine_builder.backends.registry import AUTO, BACKENDS, choose_backend
from i2v_tensorrt.engine_builder.build.build import quiet
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs

from ...helpers.contract import assert_contract
from ...helpers.toys import CPU, LIMITS, Computed, ToyBackend, ToyNetwork, toy_network, toy_spec

SIZES = {"batch": 2, "frames": 3, "latent_height": 5, "latent_width": 7}
ANY_SHAPE = toy_spec(ShapeProfile())


def test_eager_runs_the_network_itself_at_any_size_without_gradients() -> None:
    runner = EagerRunner(ANY_SHAPE, ToyNetwork, CPU)
    runner.load()
    inputs = {name: value.requires_grad_() for name, value in example_inputs(ANY_SHAPE, SIZES).items()}
    found = runner(inputs)["prediction"]
    assert torch.equal(found, ToyNetwork()(**inputs))
    assert not found.requires_grad


def test_eager_keeps_the_contract_and_reads_its_weights_when_they_are_asked_for() -> None:
    reads = []
    runner = EagerRunner(toy_spec(), lambda: reads.append(1) or ToyNetwork(), CPU)
    assert reads == []
    assert_contract(runner, ToyNetwork(), "_network", 0)
    assert len(reads) == 2
    assert runner.memory_bytes == 4 * 4 * 27 * 4


def test_several_outputs_have_their_names_in_order() -> None:
    network = toy_network(
        outputs=(TensorSpec("more", toy_network().inputs[0].dims), TensorSpec("twice", ("batch", 4), "float32"))
    )
    runner = EagerRunner(
        EngineSpec(network, ShapeProfile(), "fp32"),
        lambda: Computed(lambda sample, strength: (sample + 1, strength * 2)),
        CPU,
    )
    runner.load()
    inputs = example_inputs(runner.spec, SIZES)
    outputs = runner(inputs)
    assert torch.equal(outputs["more"], inputs["sample"] + 1)
    assert torch.equal(outputs["twice"], inputs["strength"] * 2)


def test_eager_has_nothing_to_build(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="nothing to build"):
        EagerBackend().build(ToyNetwork(), toy_spec(), tmp_path, quiet)
    assert not EagerBackend.builds
    assert EagerBackend().availability(CPU).ok
    assert isinstance(EagerBackend().load(None, toy_spec(), ToyNetwork, CPU), EagerRunner)


# Every runner.


class Recording(EagerRunner):
    """Keeps what reached the network."""

    def _run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        self.seen = inputs
        return {}


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.float16])
def test_inputs_come_to_the_network_in_the_declared_dtypes(precision: str, given: torch.dtype) -> None:
    spec = toy_spec(ShapeProfile(), precision)
    runner = Recording(spec, ToyNetwork, CPU)
    runner.load()
    runner({name: value.to(given) for name, value in example_inputs(spec, SIZES).items()})
    expected = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    assert {name: value.dtype for name, value in runner.seen.items()} == {"sample": expected, "strength": torch.float32}


@pytest.mark.parametrize(
    ("profile", "change", "words"),
    [
        (LIMITS, lambda inputs: inputs, "latent_height is 5, 1 more than a multiple of 2; latent_width is 7, 1 more"),
        (LIMITS.exact(SIZES), lambda inputs: {**inputs, "sample": inputs["sample"][:, :, :2]}, "frames is 2, 1 below"),
        (ShapeProfile(), lambda inputs: {"sample": inputs["sample"]}, "expects the tensors"),
        (ShapeProfile(), lambda inputs: {**inputs, "strength": inputs["strength"][:1]}, "expects strength as"),
        (ShapeProfile(), lambda inputs: {**inputs, "sample": inputs["sample"][:, :3]}, "expects sample as"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_before_they_reach_the_network(
    profile: ShapeProfile, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]], words: str
) -> None:
    runner = Recording(toy_spec(profile), ToyNetwork, CPU)
    runner.load()
    with pytest.raises(InputError, match=words):
        runner(change(example_inputs(ANY_SHAPE, SIZES)))
    assert not hasattr(runner, "seen")


# The choice.


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> ToyBackend:
    backend = ToyBackend()
    monkeypatch.setattr(registry, "BACKENDS", {"toy": backend, "eager": BACKENDS["eager"]})
    return backend


def test_backends_are_known_by_their_own_names_and_eager_is_the_last() -> None:
    assert {name: backend.name for name, backend in BACKENDS.items()} == {name: name for name in BACKENDS}
    assert list(BACKENDS)[-1] == "eager", "it is always there, so that nothing after it would be tried"


def test_auto_takes_the_first_that_serves_and_a_named_one_gives_the_reason_and_the_line_to_install(
    toy: ToyBackend,
) -> None:
    assert choose_backend(AUTO, CPU) is choose_backend("toy", CPU) is toy
    for install, told in (("pip install toys", " To install it: pip install toys"), ("", "")):
        toy.available = Availability(False, "The toy is lost.", install)
        assert choose_backend(AUTO, CPU).name == "eager"
        with pytest.raises(BackendUnavailableError, match=f"^The toy is lost.{told}$"):
            choose_backend("toy", CPU)


@pytest.mark.parametrize("name", ["", "Toy", "tpu", "onnxruntime; rm -rf"])
def test_an_unknown_backend_is_an_input_error_with_the_known_ones(toy: ToyBackend, name: str) -> None:
    with pytest.raises(InputError) as caught:
        choose_backend(name, CPU)
    assert str(caught.value) == f"The backend is one of auto, toy, eager, found {name!r}."


def test_a_backend_for_this_machine_alone_refuses_another() -> None:
    with pytest.raises(EngineError, match="toy builds for this machine only, found 'sm_89'"):
        ToyBackend().for_target(BuildTarget(CPU, "sm_89"))

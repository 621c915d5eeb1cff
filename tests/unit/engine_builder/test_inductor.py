"""Inductor: engines without weights, bound to those of whichever network they are loaded with."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.engine_builder.backends.base import INSIDE, OUTSIDE, Runner
from i2v_tensorrt.engine_builder.backends.inductor import backend as inductor
from i2v_tensorrt.engine_builder.backends.inductor import cpp_compiler, package
from i2v_tensorrt.engine_builder.backends.inductor import runner as inductor_runner
from i2v_tensorrt.engine_builder.backends.inductor import runner as runner_module
from i2v_tensorrt.engine_builder.backends.inductor.backend import InductorBackend, hinted_sizes
from i2v_tensorrt.engine_builder.backends.inductor.package import FILE_NAME
from i2v_tensorrt.engine_builder.backends.inductor.runner import InductorRunner
from i2v_tensorrt.engine_builder.backends.registry import BACKENDS
from i2v_tensorrt.engine_builder.build.build import quiet
from i2v_tensorrt.engine_builder.build.compile import BuildRequest, check_plan, compile_engine
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.contract import RANGED, assert_contract, toy_sizes
from ...helpers.inductor_toys import Mixed, build, loaded, mixed_spec
from ...helpers.toys import CPU, FILES, ToySource, names, publish, raising, toy_network, toy_spec

CONFTEST = Path(__file__).resolve().parents[2] / "conftest.py"
ELSEWHERE = """
import runpy, sys
runpy.run_path(sys.argv[1])
from importlib import import_module
from pathlib import Path
from i2v_tensorrt.engine_builder.store.store import EngineStore
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.tests.helpers.inductor_toys import loaded
import torch
(plan,) = EngineStore(Path(sys.argv[2])).plans()
runner, network = loaded(plan, torch.device("cpu"))
inputs = example_inputs(plan.manifest.spec, {"batch": 1, "frames": 2, "latent_height": 6, "latent_width": 10})
print(float((runner(inputs)["prediction"] - network(**inputs)).abs().max()))
"""
SIZES = {"batch": 2, "frames": 4, "latent_height": 8, "latent_width": 6}


@pytest.fixture(scope="module", autouse=True)
def trusted() -> Iterator[None]:
    """The compiler is proved by the slow test alone."""
    proof: Future[str] = Future()
    proof.set_result(cpp_compiler.compilers()[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inductor, "proof_begun", lambda device: proof)
        yield


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return build(tmp_path_factory.mktemp("inductor"), CPU)


def check(runner: Runner, network: torch.nn.Module, sizes: dict[str, int], seed: int = 0) -> None:
    """The runner gives the network's result."""
    inputs = example_inputs(runner.spec, sizes, seed)
    (found,) = runner(inputs).values()
    torch.testing.assert_close(found, network(**inputs), rtol=0, atol=1e-5)


def runner_of(plan: Plan, make: Callable[[], torch.nn.Module] = Mixed) -> InductorRunner:
    return InductorRunner(plan, plan.manifest.spec, make, CPU)


# The runner.


def holders(network: torch.nn.Module) -> list[int]:
    """How many tensors share the memory of each weight."""
    count = torch._C._storage_Use_Count  # pyright: ignore[reportAttributeAccessIssue]
    return [count(tensor.untyped_storage()._cdata) for tensor in network.parameters()]


def test_the_runner_keeps_the_contract_and_holds_no_weights_once_it_is_unloaded(plan: Plan) -> None:
    made: list[Mixed] = []
    runner = runner_of(plan, lambda: made.append(Mixed()) or made[-1])
    assert_contract(runner, Mixed(), "_package", 1e-5, [*RANGED, toy_sizes(2, 3, 32, 6)])
    assert len(made) == 2
    runner.load()
    assert holders(made[-1]) != holders(Mixed())
    runner.unload()
    assert [holders(each) for each in made] == [holders(Mixed())] * 3
    assert runner.memory_bytes == sum(tensor.nbytes for tensor in Mixed().state_dict().values()) - 4 * 20 + 4 * 4


def test_another_process_runs_it_without_a_compiler(plan: Plan) -> None:
    environment = {**os.environ, "PATH": "", "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(plan.folder.parent / "none")}
    command = [sys.executable, "-c", ELSEWHERE, str(CONFTEST), str(plan.folder.parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5


# Weights.


def test_the_engine_holds_no_weights_and_its_name_none_of_them(plan: Plan) -> None:
    backend = InductorBackend()
    one, other = (backend.network_of(toy_network(weights_sha256=digit * 64), OUTSIDE) for digit in "12")
    assert one == other != backend.network_of(toy_network(config_sha256="2" * 64), OUTSIDE)
    assert BACKENDS["onnxruntime"].network_of(toy_network(), INSIDE) == toy_network()
    assert names(plan.folder) == ["manifest.json", FILE_NAME]
    runner, network = loaded(plan, CPU)
    layout = json.loads(runner._package.get_metadata()["layout"])
    assert layout["conv.weight"] == [[4, 4, 3, 3], list(network.conv.weight.stride()), "torch.float32"]


def test_another_networks_weights_give_its_own_result(plan: Plan) -> None:
    """Of the small parameters too, which the compiler would gladly write into the code."""
    (first, _), (second, network) = loaded(plan, CPU, 0), loaded(plan, CPU, 1)
    check(second, network, SIZES)
    inputs = example_inputs(plan.manifest.spec, SIZES)
    assert float((first(inputs)["prediction"] - second(inputs)["prediction"]).abs().max()) > 0.1


@pytest.mark.parametrize("name", ["conv.weight", "conv.bias", "linear.weight", "linear.bias", "offset"])
def test_a_tensor_that_is_changed_in_place_changes_the_next_result(plan: Plan, name: str) -> None:
    runner, network = loaded(plan, CPU)
    tensor = dict([*network.named_parameters(), *network.named_buffers()])[name]
    inputs = example_inputs(plan.manifest.spec, SIZES)
    before = runner(inputs)["prediction"]
    tensor.mul_(3)
    assert runner.is_loaded
    assert float((runner(inputs)["prediction"] - before).abs().max()) > 1e-3
    check(runner, network, SIZES)


def test_weights_that_have_moved_or_have_another_layout_are_laid_out_as_the_engine_reads_them(plan: Plan) -> None:
    runner, network = loaded(plan, CPU)
    network.linear.weight.data = torch.ones(4, 4)
    network.conv.weight.data = network.conv.weight.data.contiguous()
    assert not runner.is_loaded
    runner.load()
    check(runner, network, SIZES)
    (bound,) = (each for each in runner._bound if each.owner is network.conv._parameters and each.name == "weight")
    assert bound.memory.data_ptr() == network.conv.weight.data_ptr(), "still one copy"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Mixed().half(), r"expects \S+ as \[.*\] in torch.float32, found \[.*\] in torch.float16"),
        (lambda: torch.nn.Linear(4, 4), r"expects \S+ as .*, found none"),
    ],
)
def test_a_network_that_does_not_fit_is_named(plan: Plan, make: Callable[[], torch.nn.Module], words: str) -> None:
    runner = runner_of(plan, make)
    with pytest.raises(EngineError, match=words):
        runner.load()
    assert not runner.is_loaded


def test_the_network_is_made_before_its_engine_is_opened(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new process an engine does not open whose operators nobody has registered: they come with the network."""
    order: list[str] = []
    opened = runner_module.open_parts

    def open_engine(*arguments: object) -> object:
        order.append("engine")
        return opened(*arguments)

    monkeypatch.setattr(runner_module, "open_parts", open_engine)
    runner_of(plan, lambda: order.append("network") or Mixed()).load()
    assert order == ["network", "engine"]


def test_a_damaged_engine_never_reaches_the_loader(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "Package", lambda *_: pytest.fail("was handed over"))
    plan = publish(store, mixed_spec(), {FILE_NAME: b"code"})
    (plan.folder / FILE_NAME).write_bytes(b"Code")
    with pytest.raises(EngineError, match="network.pt2 is damaged"):
        runner_of(plan).load()


def test_what_the_loader_refuses_is_one_sentence(store: EngineStore) -> None:
    plan = publish(store, mixed_spec(), {**FILES, FILE_NAME: b"no code"})
    with pytest.raises(EngineError, match="^Inductor cannot load the core engine: "):
        runner_of(plan).load()
    with pytest.raises(EngineError, match="needs a built engine"):
        InductorBackend().load(None, mixed_spec(), Mixed, CPU)


def test_memory_that_ran_out_comes_through_as_it_is(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = loaded(plan, CPU)
    monkeypatch.setattr(runner, "_package", raising(torch.OutOfMemoryError("CUDA out of memory.")))
    with pytest.raises(torch.OutOfMemoryError):
        runner._run(example_inputs(plan.manifest.spec, SIZES))


# Building.


class Negated(Mixed):
    """Wrong, with the right weights."""

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        return -super().forward(sample, strength)


def test_the_gate_compares_with_the_plain_network(plan: Plan) -> None:
    backend = InductorBackend()
    assert check_plan(plan, backend, Mixed, CPU, Mixed).snr_db > 100
    with pytest.raises(EngineError, match="does not give the reference's result"):
        check_plan(plan, backend, Mixed, CPU, Negated)


def test_a_wrong_rewrite_is_not_published(tmp_path: Path) -> None:
    exact = mixed_spec(toy_spec(ShapeProfile(toy_spec().profile.exact(SIZES).ranges)))
    spec = replace(exact, rewrites=("negated",))
    request = BuildRequest(spec, ToySource(Negated), InductorBackend(), CPU, reference=ToySource(Mixed))  # type: ignore[arg-type]
    with pytest.raises(EngineError, match="core: The fp32 engine does not give the reference's result"):
        compile_engine(request, tmp_path, quiet)


class Untraceable(Mixed):
    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        return sample if float(strength.sum()) > 0 else -sample


class OwnTensor(Mixed):
    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        return super().forward(sample, strength) + torch.tensor([1.0, 2.0])[0]


@pytest.mark.parametrize(("make", "words"), [(Untraceable, "cannot compile"), (OwnTensor, "makes 1 of its own")])
def test_a_network_that_cannot_be_compiled_is_one_sentence(
    make: Callable[[], torch.nn.Module], words: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=words) as caught:
        InductorBackend(CPU).build(make(), mixed_spec(), tmp_path, quiet)
    assert "\n" not in str(caught.value)
    assert names(tmp_path) == []


def test_a_compiler_that_proves_unfit_while_it_works_has_its_work_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "compilers", lambda: ["first", "second"])
    used: list[str] = []

    def with_proof_of(answer: str) -> str:
        proof = Future[str]()

        def compile_by(name: str) -> None:
            used.append(name)
            if not proof.done():
                proof.set_result(answer)
                raise RuntimeError("no such header")

        return inductor._with_proved(proof, compile_by)

    assert with_proof_of("second") == "second"
    assert used == ["first", "second"]
    with pytest.raises(RuntimeError, match="no such header"):
        with_proof_of("first")
    fit = Future[str]()
    fit.set_result("first")
    assert inductor._with_proved(fit, used.append) == "first"
    assert used == ["first", "second", "first", "first"]


def test_an_engine_is_tuned_for_the_profiles_optimum_and_never_traced_at_one() -> None:
    ranges = {"batch": DimRange(1, 2, 2), "frames": DimRange(1, 1, 16), "side": DimRange(1, 1, 1)}
    assert hinted_sizes(ShapeProfile(ranges)) == {"batch": 2, "frames": 3, "side": 1}
    ranges = {"one": DimRange(8, 8, 256, 8), "two": DimRange(8, 16, 256, 8), "only": DimRange(8, 8, 8, 8)}
    assert hinted_sizes(ShapeProfile(ranges)) == {"one": 16, "two": 16, "only": 8}, "a multiple of 1 is burnt in too"


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), EngineError("It was refused.")])
def test_a_graph_for_which_there_is_no_room_costs_no_call(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The capture has a warm-up of its own, on another stream, which needs its scratch memory a second time."""

    monkeypatch.setattr(inductor_runner, "can_capture", lambda device: True)
    monkeypatch.setattr(inductor_runner, "is_launch_bound", lambda call, device: (call(), True))
    monkeypatch.setattr(InductorRunner, "_graphs_pool", lambda self: None)
    monkeypatch.setattr(inductor_runner, "Replay", raising(error))
    runner, network = loaded(plan, CPU)
    for _ in range(3):
        check(runner, network, SIZES)
    assert runner.warning is not None
    assert str(error).rstrip(".") in runner.warning

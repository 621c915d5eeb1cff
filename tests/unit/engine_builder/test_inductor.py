"""Inductor: engines without weights, bound to those of whichever network they are loaded with."""

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._ordered_set import OrderedSet

from i2v_tensorrt.common.errors import EngineError, InputError
from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.engine_builder.backends.base import Runner
from i2v_tensorrt.engine_builder.backends.inductor import backend as inductor
from i2v_tensorrt.engine_builder.backends.inductor import cpp_compiler, torch_workarounds
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

from ...helpers.inductor_toys import Mixed, build, loaded, mixed_spec
from ...helpers.toys import CPU, FILES, ToySource, names, publish, toy_network, toy_spec

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
RANGED = [
    SIZES,
    {"batch": 1, "frames": 1, "latent_height": 4, "latent_width": 4},
    {"batch": 1, "frames": 16, "latent_height": 4, "latent_width": 32},
    {"batch": 2, "frames": 3, "latent_height": 32, "latent_width": 6},
]


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


# Results.


@pytest.mark.parametrize("sizes", RANGED)
def test_the_engine_computes_what_the_network_computes_at_every_size(plan: Plan, sizes: dict[str, int]) -> None:
    check(*loaded(plan, CPU), sizes)


def test_inputs_of_any_layout_are_taken(plan: Plan) -> None:
    runner, network = loaded(plan, CPU)
    inputs = example_inputs(plan.manifest.spec, SIZES)
    expected = network(**inputs)
    sample = inputs["sample"]
    shifted = torch.empty(sample.numel() + 1)[1:].copy_(sample.flatten()).reshape(sample.shape)
    strided = sample.transpose(3, 4).contiguous().transpose(3, 4)
    for given in (shifted, strided):
        found = runner({**inputs, "sample": given})["prediction"]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    first = {**inputs, "sample": sample[:1].expand_as(sample)}
    torch.testing.assert_close(runner(first)["prediction"], network(**first), rtol=0, atol=1e-5)


def test_another_process_runs_it_without_a_compiler(plan: Plan) -> None:
    environment = {**os.environ, "PATH": "", "CXX": "", "TORCHINDUCTOR_CACHE_DIR": str(plan.folder.parent / "none")}
    command = [sys.executable, "-c", ELSEWHERE, str(CONFTEST), str(plan.folder.parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1e-5


# Weights.


def test_the_engine_holds_no_weights_and_its_name_none_of_them(plan: Plan) -> None:
    backend = InductorBackend()
    one, other = (backend.network_of(toy_network(weights_sha256=digit * 64)) for digit in "12")
    assert one == other != backend.network_of(toy_network(config_sha256="2" * 64))
    assert BACKENDS["onnxruntime"].network_of(toy_network()) == toy_network()
    assert names(plan.folder) == ["manifest.json", FILE_NAME]


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


def test_weights_that_have_moved_are_bound_again(plan: Plan) -> None:
    runner, network = loaded(plan, CPU)
    network.linear.weight.data = torch.ones(4, 4)
    assert not runner.is_loaded
    runner.load()
    check(runner, network, SIZES)


def test_weights_of_another_layout_are_laid_out_as_the_engine_reads_them(plan: Plan) -> None:
    network = Mixed()
    network.conv.weight.data = network.conv.weight.data.contiguous()
    runner = InductorRunner(plan, plan.manifest.spec, lambda: network, CPU)
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
    runner = InductorRunner(plan, plan.manifest.spec, make, CPU)
    with pytest.raises(EngineError, match=words):
        runner.load()
    assert not runner.is_loaded


# The runner's contract.


def test_a_runner_is_unloaded_and_loaded_again(plan: Plan) -> None:
    reads = []
    runner = InductorRunner(plan, plan.manifest.spec, lambda: reads.append(1) or Mixed(), CPU)
    for count in (1, 2):
        runner.load()
        runner.load()
        assert (runner.is_loaded, len(reads)) == (True, count)
        check(runner, Mixed(), SIZES)
        runner.unload()
        runner.unload()
        assert not runner.is_loaded
    with pytest.raises(EngineError, match="is not loaded"):
        runner(example_inputs(plan.manifest.spec, SIZES))
    assert runner.memory_bytes == sum(tensor.nbytes for tensor in Mixed().state_dict().values()) - 4 * 20 + 4 * 4


def holders(network: torch.nn.Module) -> list[int]:
    """How many tensors share the memory of each weight."""
    count = torch._C._storage_Use_Count  # pyright: ignore[reportAttributeAccessIssue]
    return [count(tensor.untyped_storage()._cdata) for tensor in network.parameters()]


def test_an_unloaded_engine_holds_no_weights(plan: Plan) -> None:
    before = holders(Mixed())
    runner, network = loaded(plan, CPU)
    assert holders(network) != before
    runner.unload()
    assert holders(network) == before


def test_the_network_is_made_before_its_engine_is_opened(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a new process an engine does not open whose operators nobody has registered: they come with the network."""
    order: list[str] = []
    opened = runner_module.open_parts

    def source() -> torch.nn.Module:
        order.append("network")
        return Mixed()

    def open_engine(*arguments: Any) -> object:
        order.append("engine")
        return opened(*arguments)

    monkeypatch.setattr(runner_module, "open_parts", open_engine)
    runner = InductorRunner(plan, plan.manifest.spec, source, CPU)
    runner.load()
    assert order == ["network", "engine"]


def test_sizes_outside_the_profile_are_refused(plan: Plan) -> None:
    runner, _ = loaded(plan, CPU)
    with pytest.raises(InputError, match="^The inductor engine of core: frames is 17"):
        runner(example_inputs(plan.manifest.spec, {**SIZES, "frames": 17}))


def test_a_damaged_engine_never_reaches_the_loader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor

    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_, **__: pytest.fail("was handed over"))
    plan = publish(EngineStore(tmp_path), mixed_spec(), {FILE_NAME: b"code"})
    (plan.folder / FILE_NAME).write_bytes(b"Code")
    with pytest.raises(EngineError, match="network.pt2 is damaged"):
        InductorRunner(plan, mixed_spec(), Mixed, CPU).load()


def test_what_the_loader_refuses_is_one_sentence(tmp_path: Path) -> None:
    plan = publish(EngineStore(tmp_path), mixed_spec(), {**FILES, FILE_NAME: b"no code"})
    with pytest.raises(EngineError, match="^Inductor cannot load the core engine: "):
        InductorRunner(plan, mixed_spec(), Mixed, CPU).load()
    with pytest.raises(EngineError, match="needs a built engine"):
        InductorBackend().load(None, mixed_spec(), Mixed, CPU)


def test_memory_that_ran_out_comes_through_as_it_is(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    runner, _ = loaded(plan, CPU)

    def fail(**_: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(runner, "_package", fail)
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


class Switched(Mixed):
    """Remembers what it was traced with."""

    def forward(self, sample: torch.Tensor, strength: torch.Tensor) -> torch.Tensor:
        object.__setattr__(self, "cudnn", torch.backends.cudnn.enabled)
        return super().forward(sample, strength)


def test_layouts_are_traced_as_they_are_when_the_engine_runs() -> None:
    """An engine that was traced without cuDNN read its convolutions' results in an order that cuDNN does not give."""
    network = Switched()
    inputs = example_inputs(mixed_spec(), SIZES)
    with torch_workarounds.layouts_as_run(torch.device("cuda")):
        torch.export.export(network, (), inputs)
    assert network.cudnn is True
    assert import_module("torch.export._trace")._ignore_backend_decomps is not nullcontext


def test_every_array_is_declared_both_times_that_code_is_written() -> None:
    """The writer of the second time lies where that of the first one was: its declaration went missing."""
    from torch._inductor.codegen.cpp_wrapper_cpu import CppWrapperCpu
    from torch._inductor.utils import IndentedBuffer

    wrapper = CppWrapperCpu.__new__(CppWrapperCpu)
    wrapper.codegen_int_array_var_cache = {}
    wrapper.declared_int_array_vars = OrderedSet()
    wrapper.int_array_id = itertools.count()
    texts = [IndentedBuffer(), IndentedBuffer()]
    with torch_workarounds.arrays_declared():
        names = [wrapper.codegen_int_array_var("{4L, 2L}", text.writeline, True) for text in texts]
        again = [wrapper.codegen_int_array_var("{4L, 2L}", text.writeline, True) for text in texts]
    assert again == names
    for name, text in zip(names, texts, strict=True):
        assert text.getvalue().count(f"{name}[] = {{4L, 2L}}") == 1


def test_a_gpus_engine_tries_no_vector_instructions_of_the_cpu() -> None:
    """Trying them out took 30 of the 60 s in which the smallest network was compiled for a GPU."""
    from torch._inductor.cpu_vec_isa import invalid_vec_isa, pick_vec_isa

    with torch_workarounds.vectors_untried(torch.device("cuda")):
        assert pick_vec_isa() is invalid_vec_isa
    with torch_workarounds.vectors_untried(CPU):
        assert pick_vec_isa() is not invalid_vec_isa


def test_what_a_kernel_writes_to_is_found_out_once_for_each_kind_of_arguments() -> None:
    asked: list[dict[str, Any]] = []

    def find(kernel: object, arguments: dict[str, Any], tma: dict[str, Any]) -> list[str]:
        asked.append(arguments)
        return ["out"]

    ask, kernel = torch_workarounds.remembered(find), object()
    half = {"out": torch.zeros(2, dtype=torch.float16), "block": 64}
    answer = ask(kernel, half, {})
    answer.append("spoilt")  # the answer is the caller's own
    assert ask(kernel, {**half, "out": torch.ones(5, dtype=torch.float16)}, {}) == ["out"]
    assert len(asked) == 1
    for other, arguments, tma in (
        (object(), half, {}),
        (kernel, {**half, "out": torch.zeros(2)}, {}),
        (kernel, {**half, "block": True}, {}),
        (kernel, {**half, "block": False}, {}),
        (kernel, {**half, "block": None}, {}),
        (kernel, half, {"out": "stable"}),
    ):
        ask(other, arguments, tma)
    assert len(asked) == 7


def test_a_compiler_that_proves_unfit_while_it_works_has_its_work_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "compilers", lambda: ["first", "second"])
    used: list[str] = []

    def compile_by(proof: Future[str], name: str) -> None:
        used.append(name)
        if not proof.done():
            proof.set_result("second")
            raise RuntimeError("no such header")

    unfit, fit = Future[str](), Future[str]()
    assert inductor._with_proved(unfit, lambda name: compile_by(unfit, name)) == "second"
    assert used == ["first", "second"]
    fit.set_result("first")
    assert inductor._with_proved(fit, used.append) == "first"
    assert used == ["first", "second", "first"]


def test_an_error_of_a_compiler_that_has_proved_itself_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "compilers", lambda: ["first"])
    proof = Future[str]()

    def fail(name: str) -> None:
        proof.set_result("first")
        raise RuntimeError("the network's own fault")

    with pytest.raises(RuntimeError, match="own fault"):
        inductor._with_proved(proof, fail)


def test_pytorch_asks_by_a_name_that_is_replaced() -> None:
    wrap = import_module("torch._higher_order_ops.triton_kernel_wrap")
    names = [name for name in ("identify_mutated_tensors", "identify_accessed_tensors") if hasattr(wrap, name)]
    assert names
    before = {name: getattr(wrap, name) for name in names}
    with torch_workarounds.mutations_remembered():
        assert all(getattr(wrap, name) is not before[name] for name in names)
    assert {name: getattr(wrap, name) for name in names} == before


def test_an_engine_is_tuned_for_the_profiles_optimum_and_never_traced_at_one() -> None:
    ranges = {"batch": DimRange(1, 2, 2), "frames": DimRange(1, 1, 16), "side": DimRange(1, 1, 1)}
    assert hinted_sizes(ShapeProfile(ranges)) == {"batch": 2, "frames": 3, "side": 1}


def test_the_packages_metadata_is_json(plan: Plan) -> None:
    runner, network = loaded(plan, CPU)
    layout = json.loads(runner._package.get_metadata()["layout"])
    assert layout["conv.weight"] == [[4, 4, 3, 3], list(network.conv.weight.stride()), "torch.float32"]


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), EngineError("It was refused.")])
def test_a_graph_for_which_there_is_no_room_costs_no_call(
    plan: Plan, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """The capture has a warm-up of its own, on another stream, which needs its scratch memory a second time."""

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(inductor_runner, "can_capture", lambda device: True)
    monkeypatch.setattr(inductor_runner, "is_launch_bound", lambda call, device: (call(), True))
    monkeypatch.setattr(InductorRunner, "_graphs_pool", lambda self: None)
    monkeypatch.setattr(inductor_runner, "Replay", fail)
    runner, network = loaded(plan, CPU)
    for _ in range(3):
        check(runner, network, SIZES)
    assert runner.warning is not None
    assert str(error).rstrip(".") in runner.warning

"""A network cut into parts gives what it gives whole, and the processes that compile them end together."""

from __future__ import annotations

import gc
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.network_source import NetworkSource
from i2v_tensorrt.common.spec import EngineSpec, Scope
from i2v_tensorrt.engine_builder.backends.base import BuildTarget, Part
from i2v_tensorrt.engine_builder.backends.inductor.backend import InductorBackend
from i2v_tensorrt.engine_builder.backends.inductor.package import (
    FILE_NAME,
    WIRES,
    Parts,
    file_name,
    whole_wires,
    wires_of,
    wires_text,
)
from i2v_tensorrt.engine_builder.backends.inductor.parts import Cut, cut
from i2v_tensorrt.engine_builder.backends.onnxruntime import OnnxRuntimeBackend
from i2v_tensorrt.engine_builder.build import build as build_module
from i2v_tensorrt.engine_builder.build import part_builds
from i2v_tensorrt.engine_builder.build.build import MAX_PARTS, build_engine, parts_of
from i2v_tensorrt.engine_builder.build.build_process import BuildProcess
from i2v_tensorrt.engine_builder.build.compile import BuildRequest, Compiled, request_to_dict
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.inductor_toys import Mixed, loaded, mixed_spec
from ...helpers.toys import CPU, LIMITS, ToySource, toy_spec

NETWORK = toy_spec().network
SOURCE = NetworkSource("tests.helpers.inductor_toys", "Mixed", {})
SIZES = {"batch": 2, "frames": 4, "latent_height": 8, "latent_width": 6}


class Deep(torch.nn.Module):
    """Layers in a row with a value from the first to the last, slices of one tensor in between, and an index."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8, 8) for _ in range(layers))
        self.project = torch.nn.Linear(8, 8 * layers)
        self.register_buffer("scale", torch.randn(8), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        skip, slices = torch.tanh(x), self.project(other).chunk(len(self.layers), dim=-1)
        for layer, piece in zip(self.layers, slices, strict=True):
            x = torch.tanh(layer(x) * self.scale + piece) + other[:, :1]
        return x + skip, skip.transpose(0, 1)


def traced(network: torch.nn.Module, **options: Any) -> Any:
    return torch.export.export(network, (), inputs(), strict=False, **options)


def inputs() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    return {"x": torch.randn(3, 8), "other": torch.randn(3, 8)}


class Package:
    """A part that runs uncompiled behind a package's face; `before` and `after` see what it takes and gives."""

    def __init__(self, part: Cut) -> None:
        self.part = part
        self.given: tuple[torch.Tensor, ...] = ()
        self.constants: dict[str, torch.Tensor] = {}
        self.before: Callable[[], object] = lambda: None
        self.after: Callable[[Any], Any] = lambda found: found

    def __call__(self, values: Sequence[torch.Tensor]) -> Any:
        self.before()
        self.given = tuple(values)
        return self.after(self.part.module(*values))

    def get_metadata(self) -> dict[str, str]:
        return {WIRES: wires_text(self.part.wires)}

    def get_constant_fqns(self) -> list[str]:
        tensors = (*self.part.module.named_parameters(), *self.part.module.named_buffers())
        return [name for name, _ in tensors]

    def load_constants(self, constants: dict[str, torch.Tensor]) -> None:
        self.constants = constants


def parts(network: torch.nn.Module, count: int) -> list[Package]:
    program = traced(network)
    found = [cut(program, Part(index, count)) for index in range(count)]
    assert all(part is not None for part in found)
    return [Package(part) for part in found if part is not None]


def assert_same(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> None:
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


class Writing(Deep):
    """Each layer adds to its own result where it lies, by a view; the next reads that."""

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        first = x
        for layer in self.layers:
            x = torch.tanh(layer(x))
            torch.ops.aten.add_.Tensor(x.view(-1), other.reshape(-1))
            torch.ops.aten.mul_.Tensor(x, self.scale)
        return x + first, x.transpose(0, 1)


@pytest.mark.parametrize(("make", "count"), [(Deep, 2), (Deep, 3), (Deep, 4), (Writing, 2), (Writing, 3)])
def test_parts_in_a_row_give_what_the_network_gives(make: type[Deep], count: int) -> None:
    """What is written to is made and written in one part."""
    network = make()
    assert_same(Parts(parts(network, count), NETWORK)(**inputs()), network(**inputs()))


def test_each_part_is_traced_again_and_has_its_own_weights_by_their_names() -> None:
    network = Deep()
    packages = parts(network, 3)
    for package in packages:
        program = torch.export.export(package.part.module, package.part.examples, strict=False)
        assert set(program.state_dict) | set(program.constants) == set(package.get_constant_fqns())
    names = [set(package.get_constant_fqns()) for package in packages]
    assert set.union(*names) == {*dict(network.named_parameters()), "scale"}
    assert all(own < set.union(*names) for own in names)
    whole = Parts(packages, NETWORK)
    whole.load_constants({name: torch.zeros(1) for name in whole.get_constant_fqns()})
    assert [set(each.constants) for each in packages] == names, "weights go to the parts that use them"


def test_what_lies_otherwise_is_copied_on_its_way() -> None:
    """Compiled code reads what it is given without a check."""
    network = Deep()
    first, second = parts(network, 2)
    first.after = lambda found: tuple(torch.empty(x.numel() + 1)[1:].view(x.shape).copy_(x) for x in found)
    assert_same(Parts([first, second], NETWORK)(**inputs()), network(**inputs()))
    assert all(x.data_ptr() % 64 == 0 for x in second.given)
    assert [x.stride() for x in second.given] == list(second.part.wires.strides)


def test_a_network_in_one_piece_reads_contiguous_tensors_on_a_boundary() -> None:
    given: list[torch.Tensor] = []

    class Whole(Package):
        def __init__(self) -> None:
            """Has no part: it names no wires."""

        def __call__(self, values: Sequence[torch.Tensor]) -> Any:
            given.extend(values)
            return [values[0]]

        def get_metadata(self) -> dict[str, str]:
            return {}

    ready = torch.randn(2, 6)
    sample, strength = torch.randn(5, 4).t(), torch.randn(7)[1:]
    for one in (sample, ready):
        given.clear()
        Parts([Whole()], NETWORK)(sample=one, strength=strength)
        assert all(x.is_contiguous() and x.data_ptr() % 64 == 0 for x in given)
        assert torch.equal(given[0], one) and torch.equal(given[1], strength)
    assert given[0] is ready


def test_what_no_later_part_reads_is_let_go() -> None:
    first, second, third = parts(Deep(), 3)
    made: dict[str, weakref.ref[torch.Tensor]] = {}
    left: set[str] = set()

    def seen(found: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        made.update(zip(first.part.wires.returns, map(weakref.ref, found), strict=True))
        return found

    def look() -> None:
        second.given = ()
        gc.collect()
        left.update(name for name, x in made.items() if x() is not None)

    first.after, third.before = seen, look
    Parts([first, second, third], NETWORK)(**inputs())
    needed = {*third.part.wires.reads, *third.part.wires.results}
    assert left == set(made) & needed
    assert set(made) - needed


class Stream(Deep):
    """All layers add to one tensor where it lies."""

    def forward(self, x: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.tanh(x)
        for layer in self.layers:
            torch.ops.aten.add_.Tensor(x.view(-1), torch.tanh(layer(x)).reshape(-1))
        return x + other, x.transpose(0, 1)


class Short(torch.nn.Module):
    def forward(self, x: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return x + other


def test_what_cannot_be_cut_stays_whole() -> None:
    symbols = {name: {0: torch.export.Dim("rows", min=2, max=8)} for name in inputs()}
    assert cut(traced(Stream()), Part(0, 2)) is None
    assert cut(traced(Short()), Part(1, 2)) is None
    assert cut(traced(Deep(), dynamic_shapes=symbols), Part(0, 2)) is None


def test_wires_come_back_from_their_text() -> None:
    (first, _) = parts(Deep(), 2)
    assert wires_of(first.get_metadata(), NETWORK) == first.part.wires
    whole = whole_wires(NETWORK)
    assert (whole.reads, whole.returns, whole.count) == (("sample", "strength"), ("prediction",), 1)
    assert wires_of({WIRES: wires_text(whole)}, NETWORK) == whole
    assert wires_of({"layout": "{}"}, NETWORK) == whole  # as older versions made them


def request(spec: EngineSpec | None = None, **changes: Any) -> BuildRequest:
    found = mixed_spec(spec or toy_spec(LIMITS.exact(SIZES)))
    source = ToySource(Mixed, build_module.LEAST_PARTED_BYTES)
    return replace(BuildRequest(found, source, InductorBackend(), CPU), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(("cores", "expected"), [(1, 1), (4, 1), (8, 2), (16, 4), (64, MAX_PARTS)])
def test_there_are_as_many_parts_as_cores_have_room_for(
    cores: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(build_module, "free_host_bytes", lambda: 1 << 40)
    assert parts_of(request()) == expected


def test_a_network_is_whole_where_parts_gain_nothing_or_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(build_module, "free_host_bytes", lambda: 1 << 40)
    once = request()
    tensors = tuple(replace(tensor, scope=Scope.CLIP) for tensor in once.spec.network.inputs)
    calm = replace(once.spec, network=replace(once.spec.network, inputs=tensors))
    assert parts_of(request()) == MAX_PARTS
    assert parts_of(replace(once, spec=calm)) == 1
    assert parts_of(request(toy_spec(LIMITS))) == 1
    assert parts_of(replace(once, backend=OnnxRuntimeBackend())) == 1
    assert parts_of(request(source=ToySource(Mixed, build_module.LEAST_PARTED_BYTES - 1))) == 1
    needed = build_module._memory_needed(once)
    monkeypatch.setattr(build_module, "free_host_bytes", lambda: 5 * needed)
    assert parts_of(once) == 2
    monkeypatch.setattr(build_module, "free_bytes", lambda device: 3 * build_module.needed_device_bytes(once))
    assert parts_of(once) == 1


def test_other_backends_say_that_they_build_in_one_piece() -> None:
    assert OnnxRuntimeBackend().for_target(BuildTarget(CPU)).name == "onnxruntime"
    with pytest.raises(EngineError, match="one piece, found 2 parts"):
        OnnxRuntimeBackend().for_target(BuildTarget(CPU, part=Part(1, 2)))


class Process(BuildProcess):
    """Fails for one part; others go on until they are stopped."""

    ended: list[int]
    failing = 2

    def compile(self, request: BuildRequest, folder: Path, log_path: Path, report: Any) -> Compiled:
        if request.part.index == self.failing:
            raise EngineError("The part failed.")
        try:
            while True:
                report("compile", 0.3)
                time.sleep(0.01)
        finally:
            self.ended.append(request.part.index)


@pytest.fixture
def ended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The parts whose processes have ended."""
    monkeypatch.setattr(part_builds, "BuildProcess", Process)
    monkeypatch.setattr(Process, "ended", [], raising=False)
    return Process.ended


@pytest.mark.parametrize(("failing", "others"), [(2, [1, 3]), (0, [1, 2, 3])])
def test_when_one_part_fails_the_others_end(
    monkeypatch: pytest.MonkeyPatch, ended: list[int], tmp_path: Path, failing: int, others: list[int]
) -> None:
    """The first is compiled by the process that starts the others."""
    monkeypatch.setattr(Process, "failing", failing)
    builds = part_builds.OtherParts(request(part=Part(0, 4)), tmp_path, tmp_path / "build.log")
    with pytest.raises(EngineError, match="The part failed" if failing else "the first"), builds:
        if failing == 0:
            raise EngineError("That was the first.")
        builds.wait()
    assert sorted(ended) == others
    assert threading.active_count() == len(threading.enumerate())


@pytest.mark.usefixtures("ended")
def test_what_fails_in_parts_is_compiled_in_one_piece(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    folder.mkdir()
    calls: list[bool] = []

    def compile_engine(
        request: BuildRequest, folder: Path, report: Any, other_parts: Callable[[], None] | None = None
    ) -> Compiled:
        calls.append(other_parts is not None)
        assert not list(folder.iterdir())
        (folder / file_name(len(calls))).write_bytes(b"code")
        if other_parts is not None:
            other_parts()
        return Compiled({"pieces": "one"}, None)

    monkeypatch.setattr(part_builds, "compile_engine", compile_engine)
    data = {**request_to_dict(request(part=Part(0, 3), source=SOURCE), folder)}
    found = part_builds.answer(data, tmp_path / "build.log", lambda stage, done: None)
    assert calls == [True, False]
    assert found["details"]["pieces"] == "one"
    assert [path.name for path in folder.iterdir()] == [file_name(2)]


@pytest.mark.slow
def test_an_engine_in_two_parts_gives_the_networks_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(build_module, "parts_of", lambda request: 2)
    with BuildProcess() as process:
        plan = build_engine(request(source=SOURCE), EngineStore(tmp_path), process).plan
    assert plan.manifest.details["parts"] == "2"
    assert {FILE_NAME, file_name(1)} <= set(plan.manifest.files)
    runner, network = loaded(plan, CPU)
    values = example_inputs(plan.manifest.spec, SIZES)
    for _ in range(2):
        (found,) = runner(values).values()
        torch.testing.assert_close(found, network(**values), rtol=0, atol=1e-5)
        network.linear.weight.add_(1)  # both parts compute with the network's own weights


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="ends a process as Linux does when memory runs out")
def test_when_the_first_parts_process_is_killed_no_other_is_left(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import psutil

    monkeypatch.setattr(build_module, "parts_of", lambda request: 2)
    errors: list[Exception] = []

    def build() -> None:
        try:
            with BuildProcess() as process:
                build_engine(request(source=SOURCE), EngineStore(tmp_path), process)
        except EngineError as error:
            errors.append(error)

    def workers() -> list[Any]:
        return [each for each in psutil.Process().children(recursive=True) if "worker.py" in " ".join(each.cmdline())]

    thread = threading.Thread(target=build)
    thread.start()
    while thread.is_alive() and len(workers()) < 2:
        time.sleep(0.05)
    found = workers()
    assert len(found) == 2
    next(each for each in found if each.ppid() == os.getpid()).kill()
    thread.join()
    assert "was killed" in str(errors[0])
    assert psutil.wait_procs(found, timeout=30)[1] == []

"""Inductor's engine of one block: it serves every block of every network of the kind, held or brought in."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError
from i2v_tensorrt.common.shapes import ShapeProfile
from i2v_tensorrt.engine_builder.backends.block_stream import held_count
from i2v_tensorrt.engine_builder.backends.inductor import backend as inductor
from i2v_tensorrt.engine_builder.backends.inductor.backend import InductorBackend
from i2v_tensorrt.engine_builder.backends.inductor.block_runner import BlockRunner
from i2v_tensorrt.engine_builder.backends.inductor.package import BLOCK_FILE_NAME
from i2v_tensorrt.engine_builder.backends.network_tensors import held_bytes
from i2v_tensorrt.engine_builder.build.build import quiet
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import Plan

from ...helpers.block_toys import BLOCKS, Block, Repeated, block_plan, block_runner
from ...helpers.contract import RANGED, assert_contract, toy_sizes
from ...helpers.inductor_toys import mixed_spec
from ...helpers.toys import CPU, names, toy_spec
from .test_inductor import check, trusted

__all__ = ["trusted"]
SIZES = toy_sizes()


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return block_plan(tmp_path_factory.mktemp("blocks"))


def test_an_engine_of_one_block_runs_a_network_of_more(plan: Plan) -> None:
    assert names(plan.folder) == [BLOCK_FILE_NAME, "manifest.json"]
    assert plan.manifest.details["engine_of"] == "one block"
    network = Repeated()
    runner = InductorBackend().load(plan, plan.manifest.spec, lambda: network, CPU)
    assert isinstance(runner, BlockRunner)
    assert_contract(runner, Repeated(), "_package", 1e-5, [*RANGED, toy_sizes(2, 3, 32, 6)])


def test_it_is_called_for_every_block(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = block_runner(plan, Repeated())
    runner.load()
    monkeypatch.setattr(Block, "forward", lambda *_: pytest.fail("a block ran by itself"))
    runner(example_inputs(plan.manifest.spec, SIZES))


def test_it_serves_other_weights_and_a_change_in_place_and_back(plan: Plan) -> None:
    network = Repeated(seed=1, count=3)
    runner = block_runner(plan, network)
    runner.load()
    check(runner, network, SIZES)
    first = runner(example_inputs(plan.manifest.spec, SIZES))["prediction"]
    kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    for block in network.blocks:
        block.first.weight.mul_(3)
        block.mix.sub_(2)
    check(runner, network, SIZES)
    network.load_state_dict(kept)
    assert torch.equal(runner(example_inputs(plan.manifest.spec, SIZES))["prediction"], first)


def test_weights_that_another_owner_moved_are_loaded_again(plan: Plan) -> None:
    network = Repeated()
    runner = block_runner(plan, network)
    runner.load()
    for block in network.blocks:
        block.first.weight.data = block.first.weight.data.clone()
    assert runner.is_loaded, "they are on the device all the same"
    check(runner, network, SIZES)


@pytest.mark.parametrize("held", range(BLOCKS))
def test_brought_blocks_give_the_same_bits(plan: Plan, held: int) -> None:
    network, inputs = Repeated(), example_inputs(plan.manifest.spec, SIZES)
    runner = block_runner(plan, network)
    runner.load()
    wanted, every = runner(inputs)["prediction"], runner.memory_bytes
    runner.unload()
    block_bytes = held_bytes(network.blocks[0])
    runner.room_bytes = every - (BLOCKS - held - 2) * block_bytes - (1 if held == BLOCKS - 1 else 0)
    if held >= BLOCKS - 2:  # two buffers are as large as two blocks
        runner.room_bytes = every - 1
    count = held_count(every, block_bytes, BLOCKS, runner.room_bytes)
    runner.load()
    assert runner.warning is not None and f"{BLOCKS - count} of its {BLOCKS} blocks are brought" in runner.warning
    assert runner.memory_bytes <= max(runner.room_bytes, every - (BLOCKS - 2) * block_bytes)
    for _ in range(3):
        assert torch.equal(runner(inputs)["prediction"], wanted)
    runner.unload()
    runner.room_bytes = None
    runner.load()
    assert runner.warning is None and torch.equal(runner(inputs)["prediction"], wanted)


def test_a_network_of_other_blocks_is_refused(plan: Plan) -> None:
    runner = block_runner(plan, Repeated(width=7))
    with pytest.raises(EngineError, match=r"expects first\.weight of block 0 as \[6, 4\] in torch\.float32, found \[7"):
        runner.load()
    assert not runner.is_loaded


class OwnTensor(Block):
    def forward(self, x: torch.Tensor, nothing: None, strength: torch.Tensor) -> torch.Tensor:
        return super().forward(x, nothing, strength) + torch.tensor([1.0, 2.0])[0]


def own_tensor() -> Repeated:
    network = Repeated()
    network.body.blocks = torch.nn.ModuleList([OwnTensor(), OwnTensor()])
    return network


def without_blocks() -> Repeated:
    network = Repeated()
    network.forward = lambda sample, strength: sample
    return network


@pytest.mark.parametrize(
    ("make", "words"), [(own_tensor, "a block whose tensors are weights"), (without_blocks, "no call of its blocks")]
)
def test_a_block_that_cannot_be_compiled_is_one_sentence(
    make: Callable[[], Repeated], words: str, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match=words):
        InductorBackend(CPU).build(make().requires_grad_(False), mixed_spec(), tmp_path, quiet)
    assert names(tmp_path) == []


def test_an_engine_for_one_size_has_no_other(tmp_path: Path) -> None:
    spec = toy_spec(ShapeProfile(toy_spec().profile.exact(SIZES).ranges))
    network = Repeated(seed=3)
    runner = block_runner(block_plan(tmp_path, spec), network)
    runner.load()
    check(runner, network, SIZES)


def test_every_part_but_the_first_has_nothing_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inductor, "export_block", lambda *_: pytest.fail("it was traced"))
    backend = InductorBackend(CPU, inductor.Part(1, 2))
    assert backend.build(Repeated(), mixed_spec(), tmp_path, quiet) == {}

"""A call whose blocks come from host memory, ended in its middle: nothing is held, and the next call is right."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch

from i2v_tensorrt.common.device import default_device
from i2v_tensorrt.engine_builder.backends.block_stream import BlockStream
from i2v_tensorrt.engine_builder.backends.inductor.block_runner import BlockRunner
from i2v_tensorrt.engine_builder.graph.onnx_export import example_inputs
from i2v_tensorrt.engine_builder.store.store import Plan

from ..helpers.block_toys import BLOCKS, Repeated, block_plan, block_runner
from ..helpers.contract import toy_sizes
from ..helpers.counts import counted

DEVICE = default_device()


class Interrupted(BaseException):
    """As ComfyUI's, which no `except Exception` holds up."""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return block_plan(tmp_path_factory.mktemp("blocks"), device=DEVICE)


@contextmanager
def interrupt_at(runner: BlockRunner, network: Repeated, number: int) -> Iterator[type[BaseException]]:
    """A block's call is where the user's wish to stop is met."""

    def stop(*_: object) -> None:
        raise Interrupted

    hook = network.blocks[number].register_forward_pre_hook(stop)
    yield Interrupted
    hook.remove()


@contextmanager
def no_memory_at(runner: BlockRunner, network: Repeated, number: int) -> Iterator[type[BaseException]]:
    """Memory runs out as a block's weights are half copied."""
    begin = BlockStream._begin

    def fail(stream: BlockStream, wanted: int, slot: int) -> None:
        begin(stream, wanted, slot)
        if wanted == number:
            stream._content[slot] = None
            stream._buffers[slot][0].fill_(float("nan"))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(BlockStream, "_begin", fail)
        runner.unload()
        runner.load()
        yield torch.OutOfMemoryError


@contextmanager
def freed_after(runner: BlockRunner, network: Repeated, number: int) -> Iterator[type[BaseException]]:
    """ComfyUI asks for the memory of a call that was just interrupted."""
    with interrupt_at(runner, network, number) as kind:
        yield kind
    runner.unload()
    assert not runner.is_loaded
    runner.load()


@counted(3, 50)
@pytest.mark.parametrize("ending", [interrupt_at, no_memory_at, freed_after])
def test_a_streamed_call_that_ends_in_its_middle_leaves_nothing(plan: Plan, ending: Callable, count: int) -> None:
    draw, network = random.Random(count), Repeated()
    runner, inputs = block_runner(plan, network, DEVICE), example_inputs(plan.manifest.spec, toy_sizes())
    runner.load()
    wanted = runner(inputs)["prediction"].clone()
    runner.unload()
    runner.room_bytes = 0
    runner.load()
    runner(inputs)
    held = held_bytes()
    for _ in range(count):
        with ending(runner, network, draw.randrange(BLOCKS)) as kind, pytest.raises(kind):
            runner(inputs)
        assert torch.equal(runner(inputs)["prediction"], wanted)
        assert held_bytes() == held
        assert all("forward" not in vars(block) for block in network.blocks), "each block is itself again"


def held_bytes() -> int:
    """What PyTorch holds on the GPU."""
    return torch.cuda.memory_allocated() if DEVICE.type == "cuda" else 0

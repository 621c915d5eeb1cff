"""Which blocks stay on a device, and how the others come there."""

import pytest
import torch

from i2v_tensorrt.engine_builder.backends.block_stream import BlockStream, held_count, spread

from ...helpers.toys import CPU


@pytest.mark.parametrize(
    ("room", "held"),
    [(None, 10), (120, 10), (119, 7), (100, 6), (50, 1), (49, 0), (0, 0)],
)
def test_as_many_blocks_stay_as_there_is_room_for_beside_two_buffers(room: int | None, held: int) -> None:
    assert held_count(total_bytes=120, block_bytes=10, count=10, room_bytes=room) == held


def test_a_network_that_lacks_a_byte_brings_one_block_at_least() -> None:
    assert held_count(total_bytes=100, block_bytes=1, count=100, room_bytes=99) == 97
    assert held_count(total_bytes=3, block_bytes=1, count=3, room_bytes=2) == 0


@pytest.mark.parametrize("count", [1, 2, 7, 40])
def test_brought_blocks_lie_as_far_from_each_other_as_can_be(count: int) -> None:
    for held in range(count):
        found = spread(count, held)
        assert len(found) == count - held
        gaps = {later - earlier for earlier, later in zip(found, found[1:], strict=False)}
        assert max(gaps, default=0) - min(gaps, default=0) <= 1
    assert spread(count, count) == ()


def test_each_block_comes_with_its_own_weights_in_any_order() -> None:
    weights = {number: [torch.full((3,), float(number)), torch.full((2, 2), -float(number))] for number in (1, 4, 6)}
    stream = BlockStream(weights, CPU)
    assert stream.memory_bytes == 2 * sum(tensor.nbytes for tensor in weights[1])
    for number in (1, 4, 6, 1, 4, 6, 6, 4, 1, 1):
        with stream.brought(number) as found:
            assert [tensor.unique().item() for tensor in found] == [number, -number]
    stream.close()
    weights[1][0].fill_(9)
    with stream.brought(1) as found:
        assert found[0].unique().item() == 9, "what was brought before it was closed is not taken for new"


def test_the_block_after_is_brought_before_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = BlockStream({number: [torch.zeros(1)] for number in range(3)}, CPU)
    begun: list[int] = []
    begin = stream._begin
    monkeypatch.setattr(stream, "_begin", lambda number, slot: (begun.append(number), begin(number, slot)))
    with stream.brought(0):
        assert begun == [0, 1]
    with stream.brought(1):
        assert begun == [0, 1, 2]
    with stream.brought(2):
        assert begun == [0, 1, 2, 0]
    with stream.brought(0):
        assert begun == [0, 1, 2, 0, 1]


def test_one_block_needs_no_other() -> None:
    stream = BlockStream({3: [torch.ones(1)]}, CPU)
    for _ in range(3):
        with stream.brought(3) as found:
            assert found[0].item() == 1

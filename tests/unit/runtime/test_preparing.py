"""Engines that a clip lacks are built ahead of it, and the device makes room for nothing else."""

from __future__ import annotations

import pytest

from ...helpers.toy_host import Room
from ...helpers.toy_model import BROKE, CHUNKED, ODD, MakeSet, breaking, built, run
from ...helpers.toys import ToyBackend


def test_preparing_builds_all_that_a_clip_lacks_and_nothing_else(make: MakeSet, toy: ToyBackend) -> None:
    engines = make()
    for _ in range(2):
        engines.prepare(CHUNKED)
        assert built(toy) == ["core", "vae_decoder"]
    assert run(engines) == "toy"
    assert len(toy.builds_done) == 2


@pytest.mark.parametrize("policy", [{"on_missing": "eager"}, {"on_missing": "stop"}, {"backend": "eager"}])
def test_preparing_builds_nothing_where_that_is_not_the_policy(
    make: MakeSet, toy: ToyBackend, policy: dict[str, str]
) -> None:
    engines = make(**policy)
    engines.prepare(CHUNKED)
    assert toy.builds_done == []
    assert engines.take_notes() == []


def test_preparing_leaves_what_fails_for_later(make: MakeSet, toy: ToyBackend) -> None:
    breaking(toy)
    engines = make()
    engines.prepare(CHUNKED)
    assert run(engines) == "eager"
    assert engines.take_notes() == [f"core runs in eager PyTorch, which is slower. {BROKE}"]


def test_what_cannot_be_built_makes_nobody_leave_the_device(make: MakeSet, toy: ToyBackend) -> None:
    """Room is made once for builds that fail, and not at all for sizes that no engine can serve."""
    device = Room()
    engines = make(memory_manager=device)
    engines.prepare({**ODD, "chunk": 10_000})
    assert device.cleared == 0
    breaking(toy)
    for _ in range(3):
        engines.prepare(CHUNKED)
    assert device.cleared == 1


@pytest.mark.parametrize("on_missing", ["eager", "build"])
def test_room_is_made_only_where_a_build_follows(make: MakeSet, toy: ToyBackend, on_missing: str) -> None:
    device = Room()
    engines = make(memory_manager=device, on_missing=on_missing)
    run(engines, ODD)
    run(engines)
    assert device.cleared == len(toy.builds_done) == (on_missing == "build")

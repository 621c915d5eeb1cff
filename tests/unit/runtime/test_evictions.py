"""Evictions while memory is short: in their order, no more than is needed, and named."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from i2v_tensorrt.runtime.engines.memory_manager import Memory, evict


class Shelf:
    """A memory of 100 bytes with so many in use; what is on it can be taken away."""

    def __init__(self, used: int) -> None:
        self.used = used
        self.memory = Memory(100, lambda: 100 - self.used)

    def holding(self, name: str, size: int) -> Callable[[], str]:
        def take() -> str:
            self.used -= size
            return name if size else ""

        return take


@pytest.mark.parametrize(
    ("used", "needed", "gone"),
    [
        (90, 0, None),
        (91, 0, "a"),
        (50, 40, None),
        (50, 41, "a"),
        (90, 20, "a, b"),
        (90, 25, "a, b, c"),
        (90, sys.maxsize, "a, b, c"),
    ],
)
def test_no_more_gives_way_than_keeps_a_tenth_free(used: int, needed: int, gone: str | None) -> None:
    shelf = Shelf(used)
    told = evict(shelf.memory, needed, [shelf.holding("a", 10), shelf.holding("b", 10), shelf.holding("c", 5)])
    assert told == (None if gone is None else f"Memory is over 90% full: let go of {gone}.")


def test_what_holds_nothing_is_not_named() -> None:
    shelf = Shelf(95)
    told = evict(shelf.memory, 0, [shelf.holding("a", 0), shelf.holding("b", 10)])
    assert told == "Memory is over 90% full: let go of b."
    assert evict(Shelf(99).memory, 0, [shelf.holding("a", 0)]) is None

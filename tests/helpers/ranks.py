"""Threads that stand for processes with a part of the tokens each."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

import torch

PATIENCE_S = 60
Found = TypeVar("Found")


class Meeting:
    """Exchange of tensors between so many threads."""

    def __init__(self, count: int) -> None:
        self.count, self._given = count, dict[int, torch.Tensor]()
        self._barrier = threading.Barrier(count)

    def gather(self, rank: int) -> Callable[[torch.Tensor], torch.Tensor]:
        """The exchange as the thread of that number calls it."""

        def meet(x: torch.Tensor) -> torch.Tensor:
            self._given[rank] = x.clone()
            self._barrier.wait(PATIENCE_S)
            found = torch.stack([self._given[each] for each in range(self.count)])
            self._barrier.wait(PATIENCE_S)
            return found

        return meet


def together(work: Callable[[int], Found], count: int) -> list[Found]:
    """What the work gives for each number, all at once."""
    found = dict[int, Found]()

    def run(rank: int) -> None:
        found[rank] = work(rank)

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[rank] for rank in range(count)]

"""What gives way when memory is short: in its order, no more than is needed, each told."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from i2v_tensorrt.engine_builder.backends.eager import EagerRunner
from i2v_tensorrt.pipeline.decode import scratch_bytes
from i2v_tensorrt.pipeline.request import ClipSize
from i2v_tensorrt.runtime.clip import decode_clip, fitting_chunk
from i2v_tensorrt.runtime.clip_plan import plan_clip
from i2v_tensorrt.runtime.engines.engine_set import EngineSet
from i2v_tensorrt.runtime.engines.memory_manager import LoadInPlace, Memory, evict

from ...helpers.clips import engines_of, quiet

LATENTS = torch.zeros(8, 4, 8, 8)
SIZE = ClipSize(64, 64, 8)


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


class Short(LoadInPlace):
    """A host whose memory has room for some bytes, and who can let go of caches, then of encoders, once each."""

    def __init__(self, spare_bytes: int) -> None:
        self.spare = spare_bytes
        self.held = ["caches", "encoders"]
        self.asked: list[tuple[int, bool]] = []

    def spare_bytes(self) -> int:
        return self.spare

    def free_memory(self, needed_bytes: int, *, encoders: bool) -> str | None:
        self.asked.append((needed_bytes, encoders))
        gone = [name for name in self.held if encoders or name != "encoders"]
        self.held = [name for name in self.held if name not in gone]
        return f"Let go of {' and '.join(gone)}." if gone else None


@pytest.fixture
def short(tiny_folder: Path, tmp_path: Path) -> tuple[EngineSet, Short]:
    memory_manager = Short(scratch_bytes(64, 64, 3))
    return engines_of(tiny_folder, tmp_path, memory_manager), memory_manager


def test_the_pack_gives_way_before_chunks_become_smaller(
    short: tuple[EngineSet, Short], tiny_folder: Path, tmp_path: Path
) -> None:
    unknown = engines_of(tiny_folder, tmp_path)
    assert fitting_chunk(plan_clip(unknown, SIZE)) == 8, "where nobody knows the memory"
    engines, memory_manager = short
    assert fitting_chunk(plan_clip(engines, SIZE)) == 3
    assert memory_manager.asked == [(scratch_bytes(64, 64, 8), False)]
    assert engines.take_notes() == ["Let go of caches."]


def test_a_shortage_costs_caches_then_the_chunk_then_encoders(
    short: tuple[EngineSet, Short], monkeypatch: pytest.MonkeyPatch
) -> None:
    engines, memory_manager = short
    plan, sizes, run = plan_clip(engines, SIZE), list[int](), EagerRunner._run
    whole = decode_clip(plan, LATENTS, 8, quiet)

    def cramped(runner: EagerRunner, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        sizes.append(len(inputs["latents"]))
        if memory_manager.held or len(inputs["latents"]) > 2:
            raise torch.cuda.OutOfMemoryError("injected")
        return run(runner, inputs)

    monkeypatch.setattr(EagerRunner, "_run", cramped)
    assert torch.allclose(decode_clip(plan, LATENTS, 8, quiet), whole, atol=1e-5)
    assert sizes == [8, 8, 4, 2, 1, *[1] * 8]
    assert engines.take_notes() == [
        "Let go of caches.",
        "Memory ran out with 8 frames of latents at once: decoded in smaller chunks.",
        "Memory ran out with 4 frames of latents at once: decoded in smaller chunks.",
        "Memory ran out with 2 frames of latents at once: decoded in smaller chunks.",
        "Let go of encoders.",
    ]

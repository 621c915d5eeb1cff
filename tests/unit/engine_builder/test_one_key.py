"""Eight processes ask for one engine at the same moment: one of them builds it, and all of them use it."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack

from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.counts import Evidence, counted
from ...helpers.toys import names, quarantined
from ...helpers.victims import heard, started, tell

PROCESSES = 8


@counted(2, 100, slow=True)
def test_of_eight_processes_one_builds_and_eight_use(store: EngineStore, count: int, evidence: Evidence) -> None:
    store.root.mkdir()
    with ExitStack() as stack:
        users = [stack.enter_context(started("user", store.root)) for _ in range(PROCESSES)]
        assert [heard(user) for user in users] == ["ready"] * PROCESSES
        for number in range(count):
            for user in users:
                tell(user, f"1.{number}")
            assert Counter(heard(user) for user in users) == {"built": 1, "found": PROCESSES - 1}
    assert len((store.root / "builds.log").read_text().split()) == count
    assert len(list(store.plans())) == count
    assert names(store.root / ".staging") == []
    assert quarantined(store) == []
    evidence("keys that 8 processes asked for at once", count, f"{count} builds, {count * PROCESSES} users")

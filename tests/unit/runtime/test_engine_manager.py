"""What the Engine Manager does to a store, and what it leaves alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import EngineError, I2VError, InputError
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan
from i2v_tensorrt.runtime.tools import engine_list
from i2v_tensorrt.runtime.tools.engine_list import KEY_CHARS, LEAST_CHARS
from i2v_tensorrt.runtime.tools.engine_manager import ACTIONS, DELETE, DELETE_STALE, LIST, VERIFY, Managed, manage

from ...helpers.toys import CPU, FILES, TARGET, ToyBackend, contents, publish, toy_spec

TARGETS = {
    "here": TARGET,
    "older": replace(TARGET, backend_version="0.9"),
    "other exporter": replace(TARGET, exporter="toy exporter 0"),
    "other machine": replace(TARGET, backend_version="0.9", arch="arm64"),
    "other device": replace(TARGET, backend_version="0.9", device="cuda"),
    "other backend": replace(TARGET, backend="missing"),
}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EngineStore:
    """A store whose one backend is the toy."""
    monkeypatch.setattr(engine_list, "BACKENDS", {"toy": ToyBackend()})
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def plans(store: EngineStore) -> dict[str, Plan]:
    """An engine for each target."""
    return {name: publish(store, toy_spec(), FILES, target) for name, target in TARGETS.items()}


def do(store: EngineStore, action: str, start: str = "") -> Managed:
    return manage(action, start, store, CPU, lambda *_: None)


def keys(managed: Managed) -> set[str]:
    return {row[0] for row in managed.table.rows}


def left(store: EngineStore) -> set[str]:
    return {plan.manifest.key for plan in store.plans()}


def shown(*plans: Plan) -> set[str]:
    return {plan.manifest.key[:KEY_CHARS] for plan in plans}


@pytest.mark.parametrize("action", [LIST, VERIFY])
def test_looking_changes_nothing(store: EngineStore, plans: dict[str, Plan], action: str) -> None:
    before = contents(store.root)
    assert keys(do(store, action)) == shown(*plans.values())
    assert contents(store.root) == before


def test_a_list_says_how_many_and_how_large(store: EngineStore, request: pytest.FixtureRequest) -> None:
    assert do(store, LIST).line == "0 engines, 0.0 MB"
    assert not store.root.exists()
    plans = request.getfixturevalue("plans")
    size_mb = sum(map(len, FILES.values())) * len(plans) / 1e6
    assert do(store, LIST).line == f"{len(plans)} engines, {size_mb:.1f} MB"
    plan = plans["older"]
    assert keys(do(store, LIST, plan.manifest.key[:LEAST_CHARS])) == shown(plan), "one that is named, alone"


def test_verifying_tells_the_damaged_from_the_whole(store: EngineStore, plans: dict[str, Plan]) -> None:
    damaged = plans["here"]
    (damaged.folder / "network.bin").write_bytes(b"other")
    managed = do(store, VERIFY)
    states = {row[0]: row[-1] for row in managed.table.rows}
    assert managed.line == f"{len(plans)} engines, 1 damaged"
    assert "network.bin is damaged" in states[damaged.manifest.key[:KEY_CHARS]]
    assert list(states.values()).count("whole") == len(plans) - 1


def test_one_is_removed_and_shown(store: EngineStore, plans: dict[str, Plan]) -> None:
    gone = plans["here"]
    managed = do(store, DELETE, gone.manifest.key[:LEAST_CHARS])
    assert (keys(managed), managed.line.split(",")[0]) == (shown(gone), "removed 1 engine")
    assert left(store) == {plan.manifest.key for plan in plans.values()} - {gone.manifest.key}


def test_stale_are_those_that_other_versions_built_for_this_device(store: EngineStore, plans: dict[str, Plan]) -> None:
    stale = plans["older"], plans["other exporter"]
    managed = do(store, DELETE_STALE)
    assert keys(managed) == shown(*stale)
    assert left(store) == {plan.manifest.key for plan in plans.values() if plan not in stale}
    assert do(store, DELETE_STALE).line.startswith("removed 0 engines")


def test_engines_of_a_backend_that_cannot_run_here_are_not_stale(
    store: EngineStore, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = ToyBackend(available=replace(ToyBackend().available, ok=False))
    monkeypatch.setattr(engine_list, "BACKENDS", {"toy": broken})
    assert keys(do(store, DELETE_STALE)) == set()


@pytest.mark.parametrize(
    ("action", "start", "sentence"),
    [
        (DELETE, "", "at least 8 digits of its key, found ''"),
        (DELETE, "0123456", "at least 8 digits"),
        (DELETE, "../../other", "digits of its key, 0 to 9 and a to f, found '../../other'"),
        (LIST, "ABCDEF01", "digits of its key"),
        (VERIFY, "/", "digits of its key"),
        (DELETE_STALE, "01234567", "expected no key"),
        ("prune", "", f"one of {', '.join(ACTIONS)}, found 'prune'"),
        (DELETE, "f" * 8, "begins with ffffffff"),
    ],
)
def test_what_names_no_engine_is_refused_and_removes_nothing(
    store: EngineStore, plans: dict[str, Plan], action: str, start: str, sentence: str
) -> None:
    with pytest.raises(EngineError if sentence.startswith("begins") else InputError, match=sentence):
        do(store, action, start)
    assert left(store) == {plan.manifest.key for plan in plans.values()}


def test_several_that_begin_alike_are_not_one(
    store: EngineStore, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_list, "LEAST_CHARS", 1)
    starts = [plan.manifest.key[0] for plan in plans.values()]
    start = max(starts, key=starts.count)
    if starts.count(start) == 1:  # keys are digests: add engines until two begin alike
        for number in range(16):
            publish(store, toy_spec(weights_sha256=f"{number:064x}"), FILES)
    with pytest.raises(InputError, match="Expected one engine, found"):
        for digit in "0123456789abcdef":
            if sum(key.startswith(digit) for key in left(store)) > 1:
                do(store, DELETE, digit)


def test_it_can_be_stopped_between_two_engines(store: EngineStore, plans: dict[str, Plan]) -> None:
    def stop(done: int, total: int) -> None:
        if done == 1:
            raise I2VError("stop")

    with pytest.raises(I2VError, match="stop"):
        manage(DELETE_STALE, "", store, CPU, stop)
    assert len(left(store)) == len(plans) - 1


@pytest.mark.parametrize(
    ("islands", "told"),
    [
        ((), "fp32"),
        (("mid_block", "up_blocks.1"), "fp32 (fp32 in mid_block, up_blocks.1)"),
        (("a", "b", "c", "d"), "fp32 (fp32 in 4 modules)"),
    ],
)
def test_what_computes_in_fp32_is_told(store: EngineStore, islands: tuple[str, ...], told: str) -> None:
    plan = publish(store, toy_spec(), FILES)
    plan = Plan(plan.folder, replace(plan.manifest, islands=islands))
    described = engine_list.describe(plan)
    assert described["islands"] == list(islands)
    assert f"  {told}  toy x86_64  " in described["text"]
    assert engine_list.engine_table([engine_list.Checked(plan)], "whole").rows[0][2] == f"toy x86_64 {told}"

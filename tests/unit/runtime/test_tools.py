"""The tools: the table and pictures of two clips, the doctor over backends, and what the manager does to a store."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from i2v_tensorrt.common.errors import EngineError, I2VError, InputError
from i2v_tensorrt.engine_builder.backends import registry
from i2v_tensorrt.engine_builder.backends.base import Availability
from i2v_tensorrt.engine_builder.backends.eager import EagerBackend
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan
from i2v_tensorrt.runtime.tools import doctor, engine_list
from i2v_tensorrt.runtime.tools.compare import MAX_LABEL, Compared, compare_clips
from i2v_tensorrt.runtime.tools.doctor import diagnose, installed_versions
from i2v_tensorrt.runtime.tools.engine_list import KEY_CHARS, LEAST_CHARS
from i2v_tensorrt.runtime.tools.engine_manager import ACTIONS, DELETE, DELETE_STALE, LIST, VERIFY, Managed, manage

from ...helpers.toys import CPU, FILES, TARGET, ToyBackend, contents, publish, toy_spec


def compared(difference: float, brightest: float = 0.0, labels: tuple[str, str] = ("eager", "")) -> Compared:
    one = torch.full((2, 16, 16, 3), 0.25)
    other = one.clone()
    other[1] += difference
    return compare_clips(one, other, labels, brightest, lambda *_: None)


def row(found: Compared, name: str) -> tuple[str, str]:
    ((value, where),) = [(cells[1], cells[2]) for cells in found.table.rows if cells[0] == name]
    return value, where


def test_figures_stand_in_the_table() -> None:
    found = compared(0.5)
    assert row(found, "clip") == ("2 frames of 16x16", "")
    assert row(found, "PSNR, worst") == ("6.02 dB", "frame 1")  # 20 log10(1 / 0.5)
    assert row(found, "PSNR") == ("9.03 dB", "")  # half of that error
    assert row(found, "greatest difference") == ("0.5000", "frame 1, at 0, 0")
    assert row(found, "flicker, eager")[0] == "1.0000"
    assert row(found, "flicker, second")[0] == "0.5000"
    assert found.line.startswith("PSNR 9.03 dB, SSIM 0.")


def test_equal_clips_say_so_and_a_tiny_difference_is_not_rounded_away() -> None:
    found = compared(0.0)
    assert row(found, "PSNR")[0] == row(found, "PSNR, worst")[0] == "equal"
    assert row(found, "SSIM, mean")[0] == "1.0000"
    assert found.difference.max() == 0
    assert row(compared(2.0**-20), "greatest difference")[0] == "9.5e-07"


@pytest.mark.parametrize(("brightest", "told"), [(0.0, "0.0100"), (0.5, "0.5000")])
def test_the_heat_map_reaches_from_nothing_to_the_greatest_or_to_what_was_asked(brightest: float, told: str) -> None:
    found = compared(0.01, brightest)
    assert row(found, "heat map")[0] == f"brightest from {told}"
    assert (found.difference.max() > 0.9) == (brightest == 0)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        *(({"brightest": value}, "a number from 0 to 1") for value in (-0.1, 1.1, float("nan"))),
        ({"labels": ("", "x" * (MAX_LABEL + 1))}, f"at most {MAX_LABEL} characters, found {MAX_LABEL + 1}"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        compared(0.1, **settings)


def test_markdown_keeps_a_cell_a_cell() -> None:
    lines = compared(0.1, labels=("a | b\nc", "")).table.markdown().splitlines()
    assert {line.replace("\\|", "").count("|") for line in lines} == {4}
    assert any("flicker, a \\| b c" in line for line in lines)


class Stub(EagerBackend):
    """A backend in whatever state a test asks for."""

    def __init__(self, name: str, state: Availability, automatic: bool = True) -> None:
        self.name = name  # pyright: ignore[reportAttributeAccessIssue]
        self._state, self._automatic = state, automatic

    def availability(self, device: torch.device) -> Availability:
        return self._state

    def is_automatic(self, device: torch.device) -> bool:
        return self._automatic


OK = Availability(True, "It is there.")
GONE = Availability(False, "It needs the package fast, which is missing.", "pip install fast")
COMPILER = Availability(False, "It needs a compiler.", "apt install g++")
NEVER = Availability(False, "There is no GPU.")


@pytest.fixture
def put(monkeypatch: pytest.MonkeyPatch):  # noqa: ANN201 - a function that tests call
    def put_backends(*backends: EagerBackend) -> None:
        found = {backend.name: backend for backend in (*backends, EagerBackend())}
        monkeypatch.setattr(registry, "BACKENDS", found)
        monkeypatch.setattr(doctor, "BACKENDS", found)

    return put_backends


def test_here_it_says_what_auto_takes_and_of_every_backend_why() -> None:
    found = diagnose(CPU)
    (chosen,) = [state.name for state in found.backends if state.chosen]
    assert chosen == registry.choose_backend("auto", CPU).name
    assert [state.name for state in found.backends] == list(registry.BACKENDS)
    assert all(state.reason.endswith(".") for state in found.backends)
    assert installed_versions(("torch", "no-such-package-at-all")) == (("torch", dict(found.versions)["torch"]),)
    assert f"can run: {chosen}" in found.why
    assert "fp32" in found.abilities


def test_a_faster_backend_that_is_missing_has_the_line_for_this_python(put) -> None:
    put(Stub("never", NEVER), Stub("fast", GONE), Stub("slow", OK))
    found = diagnose(CPU)
    assert found.install == f'"{sys.executable}" -m pip install fast'
    assert found.line == "auto takes slow; a faster one can be installed"
    assert [state.verdict for state in found.backends] == ["cannot run", "cannot run", "auto takes this", "can run"]
    assert found.why.endswith("first that can run: slow; never cannot run, fast cannot run")
    assert ("to install", "", found.install) in found.table.rows
    put(Stub("compiling", COMPILER))
    assert diagnose(CPU).install == "apt install g++", "a line of another installer stays as it is"


def test_what_would_come_after_the_chosen_one_is_not_urged(put) -> None:
    put(Stub("careful", OK, automatic=False), Stub("fast", OK), Stub("slow", GONE))
    found = diagnose(CPU)
    assert (found.install, found.line) == ("", "auto takes fast")
    assert ("to install", "", "nothing: none is faster here") in found.table.rows
    assert found.backends[0].verdict == "can run, by its name alone"
    assert "careful is taken by its name alone here" in found.why


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


def test_one_is_removed_and_shown_and_stale_are_those_of_other_versions_for_this_device(
    store: EngineStore, plans: dict[str, Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def expect_gone(managed: Managed, *names: str) -> None:
        assert keys(managed) == shown(*(plans.pop(name) for name in names))
        assert left(store) == {plan.manifest.key for plan in plans.values()}

    with monkeypatch.context() as patch:
        broken = ToyBackend(available=replace(ToyBackend().available, ok=False))
        patch.setattr(engine_list, "BACKENDS", {"toy": broken})
        expect_gone(do(store, DELETE_STALE))  # none of a backend that cannot run here
    managed = do(store, DELETE, plans["here"].manifest.key[:LEAST_CHARS])
    assert managed.line.split(",")[0] == "removed 1 engine"
    expect_gone(managed, "here")
    expect_gone(do(store, DELETE_STALE), "older", "other exporter")
    assert do(store, DELETE_STALE).line.startswith("removed 0 engines")


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

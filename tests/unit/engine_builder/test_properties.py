"""The store against a dictionary, ranges and profiles against brute force."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from i2v_tensorrt.common.shapes import DimRange, ShapeProfile
from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME, ParityReport
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import TARGET, contents, names, publish, toy_spec

KEYS = st.integers(0, 3)
FILES = st.dictionaries(st.sampled_from(["a.bin", "b/c.bin", "d.json"]), st.binary(max_size=40), min_size=1)


def spec(number: int) -> EngineSpec:
    return toy_spec(component=f"component {number}")


class StoreModel(RuleBasedStateMachine):
    """Whatever is done to the store, it holds what a dictionary would."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.store = EngineStore(self.folder / "engines")
        self.model: dict[int, tuple[dict[str, bytes], float]] = {}

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    def name(self, number: int) -> str:
        return engine_key(spec(number), TARGET)

    @rule(number=KEYS, files=FILES)
    def put(self, number: int, files: dict[str, bytes]) -> None:
        publish(self.store, spec(number), files)
        self.model[number] = (files, 1.0)

    @rule(number=KEYS)
    def remove(self, number: int) -> None:
        assert self.store.delete(self.name(number)) == (number in self.model)
        self.model.pop(number, None)

    @rule(number=KEYS, cosine=st.floats(0, 1))
    def check_parity(self, number: int, cosine: float) -> None:
        plan = self.store.find(self.name(number))
        if plan is not None:
            self.store.set_verdict(plan, ParityReport(cosine, 40.0, 0.1, True, ({"batch": 1},)))
            self.model[number] = (self.model[number][0], cosine)

    @rule(number=KEYS, how=st.sampled_from(["manifest", "folder", "link"]))
    def damage(self, number: int, how: str) -> None:
        folder = self.store.root / self.name(number)
        if number not in self.model:
            return
        if how == "manifest":
            (folder / FILE_NAME).write_text("{}")
        elif how == "folder":
            shutil.rmtree(folder)
            folder.write_bytes(b"")
        else:
            folder.rename(self.folder / "elsewhere")
            folder.symlink_to(self.folder / "nowhere")
            shutil.rmtree(self.folder / "elsewhere")
        assert self.store.find(self.name(number)) is None
        del self.model[number]

    @rule()
    def sweep(self) -> None:
        assert self.store.sweep() == 0

    @rule()
    def restart(self) -> None:
        self.store = EngineStore(self.store.root)

    @invariant()
    def holds_the_same(self) -> None:
        found = {plan.manifest.key: plan for plan in self.store.plans()}
        assert set(found) == {self.name(number) for number in self.model}
        for number, (files, cosine) in self.model.items():
            plan = found[self.name(number)]
            plan.verify()
            assert {name: plan.read(name) for name in plan.manifest.files} == files
            assert plan.manifest.verdict is not None
            assert plan.manifest.verdict.cosine == cosine
            assert contents(plan.folder).keys() == {*files, FILE_NAME}
        assert names(self.store.root / ".staging") == []


StoreModel.TestCase.settings = settings(max_examples=12, stateful_step_count=12, deadline=None)
TestStoreAsADictionary = StoreModel.TestCase


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40), st.integers(1, 8), st.integers(-5, 100))
def test_a_range_against_brute_force(low: int, more: int, above: int, multiple: int, size: int) -> None:
    limits = DimRange(low, low + more, low + more + above, multiple)
    allowed = {n for n in range(limits.min, limits.max + 1) if n % multiple == 0}
    assert (limits.violation(size) is None) == (size in allowed)
    assert (limits.distance(size) == 0) == (size in allowed)
    if allowed:
        ordered = sorted(allowed)
        assert [limits.above(n) for n in range(4)] == [ordered[min(n, len(ordered) - 1)] for n in range(4)]


RANGES = st.builds(lambda low, more, far: DimRange(low, low + more, low + more + far), *[st.integers(1, 6)] * 3)
PROFILES = st.builds(lambda a, b: ShapeProfile({"a": a, "b": b}), RANGES, RANGES)


@given(st.lists(PROFILES, min_size=1, max_size=5), st.integers(1, 20), st.integers(1, 20))
def test_profiles_against_brute_force(profiles: list[ShapeProfile], a: int, b: int) -> None:
    sizes = {"a": a, "b": b}
    for profile in profiles:
        inside = all(profile.ranges[name].min <= size <= profile.ranges[name].max for name, size in sizes.items())
        assert profile.fits(sizes) == inside == (profile.distance(sizes) == (0, 0)) == (profile.violations(sizes) == [])
        exact = profile.exact(sizes)
        assert exact.fits(sizes) and exact.width == 1
        assert all(profile.fits(corner) for corner in profile.corners)
    nearest = min(profiles, key=lambda profile: profile.distance(sizes))
    assert nearest.distance(sizes) == min(violation(profile, sizes) for profile in profiles)


def violation(profile: ShapeProfile, sizes: dict[str, int]) -> tuple[int, int]:
    """In how many dimensions and by how much, counted by hand."""
    pairs = [(size, profile.ranges[name]) for name, size in sizes.items()]
    off = [min(abs(size - n) for n in range(limits.min, limits.max + 1)) for size, limits in pairs]
    return sum(each > 0 for each in off), sum(off)

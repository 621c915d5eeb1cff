"""How long a build will still take: by the last one of its kind, otherwise by what is done."""

from __future__ import annotations

from dataclasses import replace

import pytest

from i2v_tensorrt.common.spec import EngineSpec
from i2v_tensorrt.engine_builder.build import build as build_module
from i2v_tensorrt.engine_builder.build.build import build_engine
from i2v_tensorrt.engine_builder.build.eta import Remaining, last_build_s
from i2v_tensorrt.engine_builder.store.manifest import Manifest
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import LIMITS, TARGET, InProcess, ToyBackend, toy_request, toy_spec


@pytest.mark.parametrize(
    ("expected_s", "elapsed_s", "done", "told"),
    [
        (60.0, 0.0, 0.0, "export (about 60 s left)"),
        (60.0, 18.0, 0.1, "export (about 40 s left)"),
        (600.0, 18.0, 0.1, "export (about 10 min left)"),
        (60.0, 58.0, 0.9, "export"),
        (60.0, 90.0, 0.5, "export (about 90 s left)"),
        (60.0, 90.0, 0.0, "export"),
        (None, 0.0, 0.0, "export"),
        (None, 3.0, 0.1, "export"),
        (None, 20.0, 0.05, "export"),
        (None, 20.0, 0.4, "export (about 30 s left)"),
        (None, 20.0, 1.0, "export"),
        (4.0, 0.0, 0.0, "export"),
    ],
)
def test_a_stage_says_how_long_it_will_take(expected_s: float | None, elapsed_s: float, done: float, told: str) -> None:
    now_s = [100.0]
    remaining = Remaining(expected_s, lambda: now_s[0])
    now_s[0] += elapsed_s
    assert remaining.told("export", done) == told


def publish(store: EngineStore, spec: EngineSpec, build_s: float, day: int, arch: str = TARGET.arch) -> None:
    with store.staging() as folder:
        target = replace(TARGET, arch=arch)
        store.publish(folder, Manifest(spec, target, {}, None, build_s, f"2026-01-{day:02}T00:00:00+00:00"))


def test_the_last_build_of_the_same_kind_is_taken(store: EngineStore) -> None:
    wanted = toy_spec(LIMITS.exact({"frames": 4}))
    assert last_build_s(wanted, ToyBackend.name, store) is None
    publish(store, toy_spec(), 10.0, day=3)
    publish(store, toy_spec(), 20.0, day=5, arch="other")
    publish(store, toy_spec(precision="fp16"), 30.0, day=6)
    publish(store, toy_spec(component="vae"), 40.0, day=7)
    publish(store, toy_spec(family="other"), 50.0, day=8)
    assert last_build_s(wanted, ToyBackend.name, store) == 20.0
    assert last_build_s(wanted, "another backend", store) is None


def test_a_build_tells_what_is_left_of_it(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "last_build_s", lambda *_: 3600.0)
    heard: list[str] = []
    build_engine(toy_request(ToyBackend()), store, InProcess(), report=lambda stage, done: heard.append(stage))
    assert "write weights (about 60 min left)" in heard
    assert heard[-1] == "publish", "nothing is left of what is done"

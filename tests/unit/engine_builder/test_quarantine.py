"""What was put aside is kept for a while, and has an end."""

from __future__ import annotations

import itertools
import os
import shutil
from pathlib import Path

import pytest

from i2v_tensorrt.engine_builder.store import quarantine
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME
from i2v_tensorrt.engine_builder.store.quarantine import MOST
from i2v_tensorrt.engine_builder.store.store import EngineStore

from ...helpers.toys import FILES, TARGET, publish, quarantined, toy_spec


def put_aside(store: EngineStore, number: int, size: int = 10) -> None:
    """Publishes an engine of so many bytes and damages it; finds the damage."""
    plan = publish(store, toy_spec(component=f"component {number}"), {"network.bin": bytes(size)})
    (plan.folder / FILE_NAME).write_text("{}")
    assert store.find(plan.manifest.key) is None


@pytest.fixture
def one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is put aside a second after the other, whatever the clock of the file system can tell apart."""
    utime, seconds = os.utime, itertools.count(1_700_000_000)

    def later(path: Path, *, follow_symlinks: bool) -> None:
        now = next(seconds)
        utime(path, (now, now), follow_symlinks=follow_symlinks)

    monkeypatch.setattr(os, "utime", later)


@pytest.mark.usefixtures("one_after_the_other")
def test_no_more_than_some_engines_are_kept_aside(store: EngineStore) -> None:
    for number in range(2 * MOST):
        put_aside(store, number)
    keys = [engine_key(toy_spec(component=f"component {number}"), TARGET) for number in range(2 * MOST)]
    assert {name.split("-")[0] for name in quarantined(store)} == set(keys[MOST:])


@pytest.mark.usefixtures("one_after_the_other")
def test_what_is_kept_aside_has_an_end_in_bytes(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quarantine, "MOST_BYTES", 5000)
    for number, size in enumerate((2000, 2000, 2000)):
        put_aside(store, number, size)
    assert len(quarantined(store)) == 2
    put_aside(store, 3, 9000)
    (last,) = quarantined(store)
    assert last.startswith(engine_key(toy_spec(component="component 3"), TARGET)), "the last one stays for inspection"


@pytest.mark.usefixtures("one_after_the_other")
def test_a_link_that_was_put_aside_goes_without_what_it_leads_to(store: EngineStore, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept.txt").write_text("kept")
    plan = publish(store, toy_spec(), FILES)
    shutil.rmtree(plan.folder)
    plan.folder.symlink_to(elsewhere, target_is_directory=True)
    assert store.find(plan.manifest.key) is None
    for number in range(MOST):
        put_aside(store, number)
    assert not any(name.startswith(plan.manifest.key) for name in quarantined(store))
    assert (elsewhere / "kept.txt").read_text() == "kept"

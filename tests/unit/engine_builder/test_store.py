"""The engine store: whole or not at all, nothing loaded on trust, nothing lost on a full disk."""

import os
import time
from pathlib import Path

import pytest

from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.toys import FILES, contents, names, publish, raising, toy_spec

NOT_A_KEY = ["", "..", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", ".staging"]


def test_a_published_engine_is_found_with_all_that_was_said_of_it(store: EngineStore, plan: Plan) -> None:
    found = EngineStore(store.root).find(plan.manifest.key)
    assert found == plan
    assert found.folder == store.root / plan.manifest.key
    assert contents(found.folder) == {**FILES, FILE_NAME: (found.folder / FILE_NAME).read_bytes()}
    found.verify()
    assert [found.verified(name).read_bytes() for name in FILES] == list(FILES.values())
    assert names(store.root / ".staging") == []


def test_an_engine_that_is_not_there_is_none_and_an_empty_store_stays_empty(store: EngineStore) -> None:
    assert store.find("a" * 64) is None
    assert list(store.plans()) == []
    assert not store.delete("a" * 64)
    assert store.sweep() == 0
    assert not store.root.exists(), "looking must not write"


@pytest.mark.parametrize("key", NOT_A_KEY)
def test_only_a_key_is_looked_up_or_deleted(store: EngineStore, plan: Plan, key: str) -> None:
    before = contents(store.root)
    assert store.find(key) is None
    assert not store.delete(key)
    assert contents(store.root) == before


def test_plans_come_in_the_order_of_keys_without_foreign_folders(store: EngineStore, plan: Plan) -> None:
    others = [publish(store, toy_spec(component=name), {"x": b"x"}) for name in ("vae_decoder", "text_encoder")]
    (store.root / "notes").mkdir()
    (store.root / "readme.txt").write_text("hello")
    expected = sorted(each.manifest.key for each in (plan, *others))
    assert [each.manifest.key for each in store.plans()] == expected


def test_publishing_again_replaces(store: EngineStore, plan: Plan) -> None:
    again = publish(store, toy_spec(), {"network.bin": b"better"})
    assert again.manifest.key == plan.manifest.key
    found = store.find(plan.manifest.key)
    assert found is not None
    assert found.verified("network.bin").read_bytes() == b"better"
    assert not (found.folder / "data").exists()
    assert names(store.root / ".staging") == []


def test_a_deleted_engine_is_gone_and_leaves_nothing(store: EngineStore, plan: Plan) -> None:
    assert store.delete(plan.manifest.key)
    assert store.find(plan.manifest.key) is None
    assert not store.delete(plan.manifest.key)
    assert names(store.root / ".staging") == []


# Locks and what dead builds leave.


def test_waiting_for_a_held_lock_can_be_given_up(store: EngineStore) -> None:
    impatient = raising(TimeoutError("another has it"))
    with store.lock("a" * 64):
        with pytest.raises(TimeoutError, match="another has it"), store.lock("a" * 64, impatient):
            pass
        with store.lock("b" * 64, impatient):
            pass
    with store.lock("a" * 64, impatient):
        pass


def test_staging_is_gone_after_an_exception(store: EngineStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.staging() as folder:
        (folder / "half").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(store.root / ".staging") == []


def test_a_sweep_takes_links_and_files_too_but_no_engine(store: EngineStore, plan: Plan) -> None:
    staging = store.root / ".staging"
    (staging / "file").write_bytes(b"x")
    if os.name != "nt":
        (staging / "dangling").symlink_to(staging / "nowhere")
        (staging / "link").symlink_to(plan.folder, target_is_directory=True)
    store.sweep(time.time() + 2 * 24 * 3600)
    assert names(staging) == []
    plan.verify()


def test_a_sweep_does_not_mind_what_vanishes_meanwhile(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another builder finishes between the listing and the look at each entry."""
    with store.staging() as folder:
        pass
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([folder]))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([folder]))
    assert store.sweep() == 0

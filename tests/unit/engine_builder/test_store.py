"""The engine store: whole or not at all, a clear error on a full or broken disk, its secret, what is put aside."""

import errno
import itertools
import os
import shutil
import stat
import time
from dataclasses import replace
from pathlib import Path

import filelock
import pytest

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.engine_builder.store import quarantine
from i2v_tensorrt.engine_builder.store import secret as secret_module
from i2v_tensorrt.engine_builder.store import store as store_module
from i2v_tensorrt.engine_builder.store.key import engine_key
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME, ParityReport
from i2v_tensorrt.engine_builder.store.quarantine import MOST
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.refusals import refused
from ...helpers.toys import FILES, TARGET, contents, fail, names, publish, quarantined, raising, toy_spec

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


def test_only_a_key_is_looked_up_or_deleted(store: EngineStore, plan: Plan) -> None:
    before = contents(store.root)
    for key in NOT_A_KEY:
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


# A full or broken disk.


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("step", ["write_text", "fsync", "rename"])
@pytest.mark.parametrize("older", [True, False])
def test_a_disk_that_refuses_leaves_the_store_as_it_was(
    store: EngineStore, monkeypatch: pytest.MonkeyPatch, step: str, number: int, older: bool
) -> None:
    other = publish(store, toy_spec(component="vae"), FILES)
    if older:
        publish(store, toy_spec(), FILES)
    before = contents(store.root)
    rename = Path.rename

    def refuse_the_new(self: Path, target: Path) -> Path:
        if (self / FILE_NAME).is_file() and (self / "new.bin").is_file():
            fail(number)()
        return rename(self, target)

    steps = {
        "write_text": (Path, "write_text", fail(number)),
        "fsync": (store_module.os, "fsync", fail(number)),
        "rename": (Path, "rename", refuse_the_new),
    }
    with monkeypatch.context() as patch, refused(StorageError, os.strerror(number), 600):
        patch.setattr(*steps[step])
        publish(store, toy_spec(), {"new.bin": b"new"})
    assert contents(store.root) == before
    assert names(store.root / ".staging") == []
    assert store.find(other.manifest.key) == other


def test_a_root_that_cannot_be_made_and_a_lock_that_is_refused_are_storage_errors(
    tmp_path: Path, store: EngineStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_bytes(b"")
    blocked = EngineStore(tmp_path / "file" / "engines")
    with pytest.raises(StorageError, match="cannot be made"), blocked.staging():
        pass
    with pytest.raises(StorageError, match="cannot be made"), blocked.lock("a" * 64):
        pass
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), store.lock("a" * 64):
        fail(errno.ENOSPC)()  # an error under the lock is not the lock's
    monkeypatch.setattr(filelock.FileLock, "acquire", fail(errno.ENOLCK))
    with pytest.raises(StorageError, match="lock"), store.lock("a" * 64):
        pass


@pytest.mark.parametrize("act", ["delete", "quarantine"])
def test_a_rename_that_is_refused_is_a_storage_error(
    store: EngineStore, plan: Plan, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=os.strerror(errno.EACCES)):
        patch.setattr(Path, "rename", fail(errno.EACCES))
        store.delete(plan.manifest.key) if act == "delete" else store.quarantine(plan.manifest.key, "Why.")
    assert store.find(plan.manifest.key) == plan


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_a_verdict_can_be_written_down_later_or_leaves_the_engine_as_it_was(
    store: EngineStore, plan: Plan, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before, verdict = contents(store.root), ParityReport(0.9999, 45.0, 1e-3, True, ({"batch": 2},))

    def half(self: Path, *_: object) -> None:
        self.write_bytes(b"half")
        fail(errno.ENOSPC)()

    with monkeypatch.context() as patch, pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        patch.setattr(Path, step, half if step == "write_text" else fail(errno.ENOSPC))
        store.set_verdict(plan, verdict)
    assert contents(store.root) == before
    assert store.find(plan.manifest.key) == plan
    judged = store.set_verdict(plan, verdict)
    assert judged.manifest == replace(plan.manifest, verdict=verdict)
    assert store.find(plan.manifest.key) == judged
    assert sorted(contents(plan.folder)) == sorted([*FILES, FILE_NAME])


# The installation's secret.


def test_the_secret_is_for_its_user_and_its_installation_alone_and_stays(
    store: EngineStore, plan: Plan, tmp_path: Path
) -> None:
    path = store.root / ".secret"
    secret = path.read_bytes()
    assert len(secret) == 32
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    publish(EngineStore(store.root), toy_spec(precision="fp16"), FILES)
    assert path.read_bytes() == secret
    assert {name for name in names(store.root) if name.startswith(".secret")} == {".secret"}
    other = publish(EngineStore(tmp_path / "other"), toy_spec(), FILES)
    assert (other.folder.parent / ".secret").read_bytes() != secret


def test_of_two_first_users_one_makes_the_secret(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process makes it between our look and our link."""
    place = secret_module._place_once

    def late(staged: Path, path: Path) -> None:
        path.write_bytes(b"x" * 32)
        place(staged, path)

    monkeypatch.setattr(secret_module, "_place_once", late)
    plan = publish(store, toy_spec(), FILES)
    assert (store.root / ".secret").read_bytes() == b"x" * 32
    assert EngineStore(store.root).find(plan.manifest.key) == plan


def test_a_file_system_without_hard_links_will_do(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module.os, "link", fail(errno.EPERM))
    plan = publish(store, toy_spec(), FILES)
    assert store.find(plan.manifest.key) == plan
    assert {name for name in names(store.root) if name.startswith(".secret")} == {".secret"}


def test_a_damaged_secret_is_refused_and_one_that_cannot_be_written_leaves_nothing(
    store: EngineStore, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for content in (b"", b"short"):
        (store.root / ".secret").write_bytes(content)
        with pytest.raises(StorageError, match=rf"expected 32 bytes, found {len(content)}"):
            store.find(plan.manifest.key)
        assert plan.folder.is_dir()
    other = EngineStore(tmp_path / "other")
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(store_module.os, "fsync", fail(errno.ENOSPC))
        other._secret.read()
    assert contents(other.root) == {}


# What was put aside is kept for a while, and has an end.


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
def test_what_is_kept_aside_has_an_end_in_number_and_bytes(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2 * MOST):
        put_aside(store, number)
    keys = [engine_key(toy_spec(component=f"component {number}"), TARGET) for number in range(2 * MOST)]
    assert {name.split("-")[0] for name in quarantined(store)} == set(keys[MOST:])
    monkeypatch.setattr(quarantine, "MOST_BYTES", 5000)
    for number in range(3):
        put_aside(store, number, 2000)
    assert {name.split("-")[0] for name in quarantined(store)} == set(keys[1:3])
    put_aside(store, 3, 9000)
    (last,) = quarantined(store)
    assert last.startswith(keys[3]), "the last one stays for inspection"


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

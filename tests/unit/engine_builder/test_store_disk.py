"""The store on a full or broken disk, and its secret: a clear error, and nothing half-written."""

import errno
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from i2v_tensorrt.common.errors import StorageError
from i2v_tensorrt.engine_builder.store import secret as secret_module
from i2v_tensorrt.engine_builder.store import store as store_module
from i2v_tensorrt.engine_builder.store.manifest import FILE_NAME, ParityReport
from i2v_tensorrt.engine_builder.store.store import EngineStore, Plan

from ...helpers.toys import FILES, contents, fail, names, publish, toy_spec


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

    with monkeypatch.context() as patch, pytest.raises(StorageError) as caught:
        patch.setattr(
            *{
                "write_text": (Path, "write_text", fail(number)),
                "fsync": (store_module.os, "fsync", fail(number)),
                "rename": (Path, "rename", refuse_the_new),
            }[step]
        )
        publish(store, toy_spec(), {"new.bin": b"new"})
    assert os.strerror(number) in str(caught.value)
    assert str(caught.value).count("\n") == 0
    assert contents(store.root) == before
    assert names(store.root / ".staging") == []
    assert store.find(other.manifest.key) == other


def test_a_root_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    blocked = EngineStore(tmp_path / "file" / "engines")
    with pytest.raises(StorageError, match="cannot be made"), blocked.staging():
        pass
    with pytest.raises(StorageError, match="cannot be made"), blocked.lock("a" * 64):
        pass


@pytest.mark.parametrize("act", ["delete", "quarantine"])
def test_a_rename_that_is_refused_is_a_storage_error(
    store: EngineStore, plan: Plan, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    with monkeypatch.context() as patch, pytest.raises(StorageError, match=os.strerror(errno.EACCES)):
        patch.setattr(Path, "rename", fail(errno.EACCES))
        store.delete(plan.manifest.key) if act == "delete" else store.quarantine(plan.manifest.key, "Why.")
    assert store.find(plan.manifest.key) == plan


def test_a_lock_that_the_system_refuses_is_a_storage_error(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import filelock

    monkeypatch.setattr(filelock.FileLock, "acquire", fail(errno.ENOLCK))
    with pytest.raises(StorageError, match="lock"), store.lock("a" * 64):
        pass


def test_an_error_under_the_lock_is_not_the_locks(store: EngineStore) -> None:
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)), store.lock("a" * 64):
        fail(errno.ENOSPC)()


VERDICT = ParityReport(0.9999, 45.0, 1e-3, True, ({"batch": 2},))


def test_a_verdict_can_be_written_down_later(store: EngineStore, plan: Plan) -> None:
    judged = store.set_verdict(plan, VERDICT)
    assert judged.manifest == replace(plan.manifest, verdict=VERDICT)
    assert store.find(plan.manifest.key) == judged
    assert sorted(contents(plan.folder)) == sorted([*FILES, FILE_NAME])


@pytest.mark.parametrize("step", ["write_text", "replace"])
def test_a_verdict_that_cannot_be_saved_leaves_the_engine_as_it_was(
    store: EngineStore, plan: Plan, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    before = contents(store.root)

    def half(self: Path, *_: object) -> None:
        self.write_bytes(b"half")
        fail(errno.ENOSPC)()

    with monkeypatch.context() as patch, pytest.raises(StorageError, match=os.strerror(errno.ENOSPC)):
        patch.setattr(Path, step, half if step == "write_text" else fail(errno.ENOSPC))
        store.set_verdict(plan, VERDICT)
    assert contents(store.root) == before
    assert store.find(plan.manifest.key) == plan


# The installation's secret.


def test_the_secret_is_for_its_user_alone_and_stays(store: EngineStore, plan: Plan) -> None:
    path = store.root / ".secret"
    secret = path.read_bytes()
    assert len(secret) == 32
    if os.name != "nt":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    publish(EngineStore(store.root), toy_spec(precision="fp16"), FILES)
    assert path.read_bytes() == secret
    assert {name for name in names(store.root) if name.startswith(".secret")} == {".secret"}


def test_every_installation_has_its_own_secret(store: EngineStore, plan: Plan, tmp_path: Path) -> None:
    other = publish(EngineStore(tmp_path / "other"), toy_spec(), FILES)
    assert (other.folder.parent / ".secret").read_bytes() != (store.root / ".secret").read_bytes()


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


@pytest.mark.parametrize("content", [b"", b"short"])
def test_a_damaged_secret_is_refused(store: EngineStore, plan: Plan, content: bytes) -> None:
    (store.root / ".secret").write_bytes(content)
    with pytest.raises(StorageError, match=rf"expected 32 bytes, found {len(content)}"):
        store.find(plan.manifest.key)
    assert plan.folder.is_dir()


def test_a_secret_that_cannot_be_written_leaves_nothing(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch, pytest.raises(StorageError):
        patch.setattr(store_module.os, "fsync", fail(errno.ENOSPC))
        store._secret.read()
    assert contents(store.root) == {}

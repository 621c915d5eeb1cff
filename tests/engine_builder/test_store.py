"""The engine store: whole or not at all, nothing loaded on trust, nothing lost on a full disk."""

import errno
import json
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from i2v_tensorrt.engine_builder import store as store_module
from i2v_tensorrt.engine_builder.errors import DamagedEngineError, EngineError, StorageError
from i2v_tensorrt.engine_builder.manifest import FILE_NAME, MAX_BYTES, Verdict
from i2v_tensorrt.engine_builder.store import EngineStore, Plan

from .toys import contents, publish, toy_spec

FILES = {"network.bin": b"weights " * 1000, "data/more.bin": b"more"}
NOT_A_KEY = ["", "..", "../" + "a" * 61, "A" * 64, "a" * 63, "a" * 65, "a" * 64 + "\n", ".staging"]
CHILD = """
import runpy, sys, time
from pathlib import Path
runpy.run_path(sys.argv[1])
from i2v_tensorrt.engine_builder.store import EngineStore
store = EngineStore(Path(sys.argv[2]))
with store.lock("a" * 64), store.staging() as folder:
    (folder / "network.bin").write_bytes(b"half")
    print("building", flush=True)
    time.sleep(60)
"""
CONFTEST = Path(__file__).resolve().parents[1] / "conftest.py"


@pytest.fixture
def store(tmp_path: Path) -> EngineStore:
    return EngineStore(tmp_path / "engines")


@pytest.fixture
def plan(store: EngineStore) -> Plan:
    return publish(store, toy_spec(), FILES)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def quarantined(store: EngineStore) -> list[str]:
    return names(store.root / ".quarantine")


def fail(number: int) -> Callable[..., None]:
    def raise_it(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return raise_it


def test_a_published_engine_is_found_with_all_that_was_said_of_it(store: EngineStore, plan: Plan) -> None:
    found = EngineStore(store.root).find(plan.manifest.key)
    assert found == plan
    assert found.folder == store.root / plan.manifest.key
    assert contents(found.folder) == {**FILES, FILE_NAME: (found.folder / FILE_NAME).read_bytes()}
    found.verify()
    assert [found.verified(name).read_bytes() for name in FILES] == list(FILES.values())
    assert names(store.root / ".staging") == []


def test_an_engine_that_is_not_there_is_none(store: EngineStore) -> None:
    assert store.find("a" * 64) is None
    assert list(store.plans()) == []
    assert not store.delete("a" * 64)
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


# Damage: every kind is seen, told in one sentence, and put aside.


def flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("name", "damage", "word"),
    [
        ("network.bin", flip_byte, "damaged"),
        ("network.bin", lambda path: os.truncate(path, 100), "damaged"),
        ("network.bin", lambda path: os.truncate(path, 0), "damaged"),
        ("network.bin", lambda path: path.write_bytes(path.read_bytes() + b"\0"), "damaged"),
        ("network.bin", lambda path: path.unlink(), "missing"),
        ("data/more.bin", flip_byte, "damaged"),
        ("data/more.bin", lambda path: shutil.rmtree(path.parent), "missing"),
        ("network.bin", lambda path: (path.unlink(), path.mkdir()), "missing"),
    ],
)
def test_a_damaged_file_is_named(plan: Plan, name: str, damage: Callable[[Path], object], word: str) -> None:
    damage(plan.folder / name)
    with pytest.raises(EngineError, match=rf"^Engine {plan.manifest.key[:12]}: the file {name} is {word}\.$"):
        plan.verify()
    with pytest.raises(EngineError, match=word):
        plan.verified(name)


def test_files_that_the_manifest_does_not_name_are_not_handed_out(plan: Plan) -> None:
    (plan.folder / "extra.bin").write_bytes(b"extra")
    with pytest.raises(EngineError, match="extra.bin"):
        plan.verified("extra.bin")


def test_a_file_that_cannot_be_read_is_an_engine_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "file_digest", fail(errno.EIO))
    with pytest.raises(EngineError, match="network.bin cannot be read"):
        plan.verified("network.bin")


def rewrite(change: Callable[[dict], None]) -> Callable[[Path], None]:
    """Changes a manifest's JSON, but not its HMAC."""

    def apply(folder: Path) -> None:
        data = json.loads((folder / FILE_NAME).read_text())
        change(data)
        (folder / FILE_NAME).write_text(json.dumps(data))

    return apply


def text(content: str | bytes) -> Callable[[Path], None]:
    raw = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / FILE_NAME).write_bytes(raw) and None


def duplicate_a_key(folder: Path) -> None:
    """Adds a second `body` before the true one: most readers would take the last and see no fault."""
    whole = (folder / FILE_NAME).read_text()
    (folder / FILE_NAME).write_text(whole.replace("{", '{"body": {},', 1))


def link_the_manifest(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere.json"
    (folder / FILE_NAME).rename(elsewhere)
    (folder / FILE_NAME).symlink_to(elsewhere)


def link_the_folder(folder: Path) -> None:
    elsewhere = folder.parent / "elsewhere"
    folder.rename(elsewhere)
    folder.symlink_to(elsewhere, target_is_directory=True)


def dangling_link(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.parent / "nowhere")


def a_file_instead(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_bytes(b"not a folder")


def a_pipe_as_manifest(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    os.mkfifo(folder / FILE_NAME)


def a_folder_as_manifest(folder: Path) -> None:
    (folder / FILE_NAME).unlink()
    (folder / FILE_NAME).mkdir()


TAMPERING = {
    "other-digest": rewrite(lambda data: data["body"]["files"]["network.bin"].update(sha256="0" * 64)),
    "other-verdict": rewrite(lambda data: data["body"]["verdict"].update(snr_db=200.0)),
    "other-hmac": rewrite(lambda data: data.update(hmac="0" * 64)),
    "no-hmac": rewrite(lambda data: data.pop("hmac") and None),
    "numeric-hmac": rewrite(lambda data: data.update(hmac=0)),
    "non-ascii-hmac": rewrite(lambda data: data.update(hmac="é" * 64)),
    "no-body": rewrite(lambda data: data.pop("body") and None),
    "duplicate-key": duplicate_a_key,
    "truncated": lambda folder: os.truncate(folder / FILE_NAME, 200),
    "empty": text(""),
    "list": text("[]"),
    "number": text("1" * 5000),
    "deep": text("[" * 100_000),
    "not-a-number": rewrite(lambda data: data["body"].update(build_s=float("nan"))),
    "not-utf-8": text(b"\xff\xfe{}"),
    "huge": text(" " * (MAX_BYTES + 1)),
    "missing": lambda folder: (folder / FILE_NAME).unlink(),
    "linked-manifest": link_the_manifest,
    "folder-as-manifest": a_folder_as_manifest,
    "linked-folder": link_the_folder,
    "dangling-link": dangling_link,
    "file-instead": a_file_instead,
    "pipe-as-manifest": a_pipe_as_manifest,
}
NEEDS_POSIX = {"linked-manifest", "linked-folder", "dangling-link", "pipe-as-manifest"}


@pytest.mark.parametrize("kind", TAMPERING)
def test_a_tampered_engine_is_put_aside_and_can_be_built_again(
    store: EngineStore, plan: Plan, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    if os.name == "nt" and kind in NEEDS_POSIX:
        pytest.skip("needs links and pipes")
    TAMPERING[kind](plan.folder)
    assert store.find(plan.manifest.key) is None
    assert not os.path.lexists(plan.folder)
    assert len(quarantined(store)) == 1
    assert quarantined(store)[0].startswith(plan.manifest.key)
    (record,) = caplog.records
    assert record.getMessage().startswith(f"Engine {plan.manifest.key[:12]} ")
    assert "\n" not in record.getMessage()
    again = publish(store, toy_spec(), FILES)
    assert store.find(again.manifest.key) == again


@pytest.mark.parametrize("kind", ["linked-folder", "dangling-link", "file-instead"])
def test_publishing_replaces_what_is_no_engine_folder(store: EngineStore, plan: Plan, kind: str) -> None:
    if os.name == "nt" and kind in NEEDS_POSIX:
        pytest.skip("needs links")
    TAMPERING[kind](plan.folder)
    publish(store, toy_spec(), {"network.bin": b"new"})
    found = store.find(plan.manifest.key)
    assert found is not None
    assert found.verified("network.bin").read_bytes() == b"new"
    assert names(store.root / ".staging") == []
    if kind == "linked-folder":
        assert (store.root / "elsewhere" / FILE_NAME).is_file(), "what a link leads to is not ours to remove"


def test_an_engine_under_another_name_is_not_trusted(store: EngineStore, plan: Plan) -> None:
    plan.folder.rename(store.root / ("b" * 64))
    assert store.find("b" * 64) is None
    assert [name[:64] for name in quarantined(store)] == ["b" * 64]


def test_an_engine_of_another_installation_is_not_trusted(store: EngineStore, plan: Plan, tmp_path: Path) -> None:
    other = EngineStore(tmp_path / "other")
    mine = publish(other, toy_spec(), FILES)
    shutil.rmtree(mine.folder)
    shutil.copytree(plan.folder, mine.folder)
    assert other.find(mine.manifest.key) is None
    assert list(store.plans()) == [plan], "the store that it came from still has it"


def test_plans_put_the_damaged_aside_and_give_the_rest(store: EngineStore, plan: Plan) -> None:
    damaged = publish(store, toy_spec(precision="fp16"), FILES)
    TAMPERING["other-digest"](damaged.folder)
    assert list(store.plans()) == [plan]
    assert len(quarantined(store)) == 1


def test_two_who_find_the_same_damage_do_not_stumble(store: EngineStore, plan: Plan) -> None:
    shutil.rmtree(plan.folder)
    store.quarantine(plan.manifest.key, "Another process was first.")
    assert quarantined(store) == []


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
    place = store_module._place_once

    def late(staged: Path, path: Path) -> None:
        path.write_bytes(b"x" * 32)
        place(staged, path)

    monkeypatch.setattr(store_module, "_place_once", late)
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
        store._secret()
    assert contents(store.root) == {}


# Locks and what dead builds leave.


def test_a_held_lock_is_told_in_a_sentence(store: EngineStore) -> None:
    with store.lock("a" * 64):
        with pytest.raises(EngineError, match="still being built by another process"), store.lock("a" * 64, 0.05):
            pass
        with store.lock("b" * 64, 0.05):
            pass
    with store.lock("a" * 64, 0.05):
        pass


def test_staging_is_gone_after_an_exception(store: EngineStore) -> None:
    with pytest.raises(KeyboardInterrupt), store.staging() as folder:
        (folder / "half").write_bytes(b"half")
        raise KeyboardInterrupt
    assert names(store.root / ".staging") == []


@pytest.mark.skipif(os.name == "nt", reason="needs signals")
def test_a_killed_builder_leaves_no_engine_and_no_lock(store: EngineStore) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(CONFTEST), str(store.root)], stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "building"
        with pytest.raises(EngineError, match="another process"), store.lock("a" * 64, 0.05):
            pass
        child.kill()
    with store.lock("a" * 64, 5):
        assert store.find("a" * 64) is None
        assert list(store.plans()) == []
    assert len(names(store.root / ".staging")) == 1
    assert store.sweep() == 0, "a build that young may be alive"
    assert store.sweep(time.time() + 2 * 24 * 3600) == 1
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


def test_a_sweep_of_an_empty_store_is_nothing(store: EngineStore) -> None:
    assert store.sweep() == 0
    assert not store.root.exists()


def test_a_sweep_does_not_mind_what_vanishes_meanwhile(store: EngineStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another builder finishes between the listing and the look at each entry."""
    with store.staging() as folder:
        pass
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter([folder]))
    monkeypatch.setattr(Path, "iterdir", lambda self: iter([folder]))
    assert store.sweep() == 0


# Reading once, and verdicts that come later.


def test_bytes_are_checked_as_they_are_read(plan: Plan) -> None:
    assert {name: plan.read(name) for name in FILES} == FILES
    flip_byte(plan.folder / "network.bin")
    with pytest.raises(DamagedEngineError, match="network.bin is damaged"):
        plan.read("network.bin")
    (plan.folder / "network.bin").unlink()
    with pytest.raises(DamagedEngineError, match="network.bin is missing"):
        plan.read("network.bin")
    (plan.folder / "extra.bin").write_bytes(b"extra")
    with pytest.raises(DamagedEngineError, match="extra.bin"):
        plan.read("extra.bin")


VERDICT = Verdict(0.9999, 45.0, 1e-3, True, ({"batch": 2},))


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
